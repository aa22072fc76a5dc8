"""The image that every step runs in."""

import os

from cwbass import __version__

# One image for all steps: it runs on CPUs too. CWBASS_IMAGE is read where the pipeline is compiled.
IMAGE = os.environ.get("CWBASS_IMAGE", f"ghcr.io/cwbass/cwbass:{__version__}-gpu")
