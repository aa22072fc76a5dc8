"""``python -m cwbass``."""

from cwbass.search_path import leave_out_working_directory

leave_out_working_directory()

from cwbass.cli import main  # noqa: E402 - what it imports is not the working directory's

main()
