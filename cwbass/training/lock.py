"""One process at a time writes the states of a run: a second one would mix its weights into the first one's."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from typing import IO

from cwbass.errors import ServiceError

LOCK = ".lock"


def lock_folder(folder: Path) -> IO[str]:
    """Take a folder for this process, until the file that is returned is closed or the process ends, however it ends.

    Loader processes do not inherit it, so one that outlives a killed run keeps nobody out. On a disk that knows no locks
    nothing is held.

    Args:
        folder: Is made where it is missing.

    Raises:
        ServiceError: Another process has it; the message names that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ServiceError(
            f"{folder}: {holder} is training there. Wait until it is done, stop it and run this command again, or choose another --out."
        ) from error
    except OSError:
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file
