"""Where Python looks for modules."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path


def leave_out_working_directory() -> None:
    """After ``python -m``: look for modules where the script ``cwbass`` does, and not in the working directory before all else.

    A ``yaml.py`` or a ``torch`` of the user's there is none of ours. What PYTHONPATH names stays, and so does the working directory
    where cwbass itself is imported from it, as in a checkout.
    """
    with suppress(FileNotFoundError):  # of a directory that is gone Python has put nothing there
        if not sys.flags.safe_path and sys.path[0] == os.getcwd() != str(Path(__file__).parents[1]):
            del sys.path[0]
