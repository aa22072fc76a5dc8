"""``python -m cwbass``."""

from cwbass.cli import main

main()
