"""Errors a user can mend, each with the exit code the CLI answers with.

CwbassError                 1
├── ParamsError             3   a parameter, the environment or the device is wrong
│   └── WeightsError        3   a weight file does not fit the model
├── DataError               4   images, masks, split files or a manifest are wrong
│   └── CheckpointError     4   a checkpoint is torn, foreign or of another schema
├── GateError               5   a model is not good enough to be registered
├── ServiceError            6   something outside (S3, a registry) failed after retries
└── Interrupted            75   stopped on request after a clean checkpoint; run again to go on

A message says what is wrong, what was seen, and how to mend it. Codes 3, 4 and 5 are
permanent: a retry gives the same answer.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

_PASSWORD = re.compile(r"//[^/\s]*@")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILING = (errno.EIO, errno.ESTALE)  # a disk; the latter where the server of a network disk was started anew
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
WRITE_ELSEWHERE = "Name a place that can be written to, or give the right to it."


class CwbassError(Exception):
    """Base of every error whose message is meant for the user; user and password of a URL are cut out of it."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(without_password(message))


class ParamsError(CwbassError):
    """A parameter, the environment or the requested device is wrong."""

    exit_code = 3


class WeightsError(ParamsError):
    """A weight file cannot be found, read or matched to the model."""


class DataError(CwbassError):
    """Images, masks, split files or a manifest are wrong."""

    exit_code = 4


class CheckpointError(DataError):
    """A checkpoint is torn, foreign or written by another schema."""


class GateError(CwbassError):
    """A model does not pass the gate of the registry."""

    exit_code = 5


PERMANENT = frozenset(kind.exit_code for kind in (ParamsError, DataError, GateError))


class ServiceError(CwbassError):
    """A service outside this process failed after retries."""

    exit_code = 6


class Interrupted(CwbassError):
    """Training stopped on request after it wrote a clean checkpoint."""

    exit_code = 75


def error_of(exit_code: int) -> type[CwbassError]:
    """The kind of error that a command of ours ended with."""
    kinds = (ParamsError, DataError, GateError, ServiceError, Interrupted)
    return next((kind for kind in kinds if kind.exit_code == exit_code), CwbassError)


@contextmanager
def disk_failures() -> Iterator[None]:
    """Around a whole command, or the body of a component: what the disk refuses inside becomes one of our errors.

    Raises:
        ServiceError: A disk is full, or fails.
        ParamsError: A place cannot be written to, or a file not be read.
    """
    try:
        yield
    except OSError as error:
        number, file = error.errno, error.filename
        if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # a tree's; there the system's error is text
            _, file, text = error.args[0][0]
            number = next((int(found) for found in re.findall(r"^\[Errno (\d+)\]", text)), None)
        if number in FULL:
            raise ServiceError(f"{file or 'a file'}: {os.strerror(number)}. Make room, and run the command again.") from error
        if number in FAILING:
            raise ServiceError(
                f"{file or 'a file'}: {os.strerror(number)}. See to the disk, and run the command again."
            ) from error
        if number in NOT_WRITABLE:
            unread = number == errno.EACCES and file is not None and os.path.exists(file) and not os.access(file, os.R_OK)
            mend = "Give the right to read it." if unread else WRITE_ELSEWHERE
            raise ParamsError(f"{file or 'a file'}: {os.strerror(number)}. {mend}") from error
        raise


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an error of a library says, for a message of ours: one line, without passwords; its kind where it says nothing."""
    text = without_password(" ".join(str(error).split()))  # before the cut, which could leave half of one
    return text[:limit] or type(error).__name__


def counted(number: int, one: str, many: str = "") -> str:
    """``1 image`` or ``2 images``, for a message; ``many`` says it where an s does not."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def without_password(text: str) -> str:
    """A text with the user and password cut out of every URL in it."""
    return _PASSWORD.sub("//", text)
