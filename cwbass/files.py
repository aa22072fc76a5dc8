"""Files that are whole or not there: written beside their place, flushed, moved there, with a SHA-256 beside them."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cwbass.errors import NOT_WRITABLE, WRITE_ELSEWHERE, CwbassError, ParamsError, ServiceError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, an error of the system that names no file names this one: of a full disk, for one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path``, to write to before that is moved there; what is left of it at the end is deleted.

    Args:
        path: The file's place; folders are made.
    """
    shown = os.fsdecode(os.fsencode(path.name)[:200])  # a name has 255 bytes at most
    partial = path.with_name(f".{shown}.{secrets.token_hex(8)}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path):
            yield partial
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | memoryview, *, before: Callable[[], None] = lambda: None) -> str:
    """Write a file beside its place, flush it, and move it there.

    Args:
        path: Its place; folders are made.
        data: Its content.
        before: Called between the two.

    Returns:
        SHA-256 of the content, hex.

    Raises:
        ServiceError: The disk is full or refuses; what was there before is whole.
        ParamsError: It may not be written there.
    """
    try:
        with partial_file(path) as partial:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            before()
            os.replace(partial, path)
            sync_folder(path.parent)
    except OSError as error:
        raise _no_room(path, len(data), error) from error
    return hashlib.sha256(data).hexdigest()


def spare_params(folder: Path, *own: str) -> None:
    """See that a step that writes ``params.yaml`` into a folder writes over none but its own.

    Args:
        folder: Where it writes.
        own: Files of its own that it writes there before; some may be gone, for not all are in every cache.

    Raises:
        ParamsError: There is a ``params.yaml`` without any of these files: somebody else's.
    """
    if (folder / "params.yaml").exists() and not any((folder / name).exists() for name in own):
        raise ParamsError(f"{folder / 'params.yaml'} is there, and would be written over. Give another folder with --out.")


def place_link(source: Path, target: Path, *, replace: bool = False) -> None:
    """Give a file a second name; a copy, where the two are on different disks.

    Raises:
        ServiceError: There is no room.
        ParamsError: It may not be written there.
    """
    if target.exists() and not replace:
        return
    try:
        with partial_file(target) as partial:
            try:
                os.link(source, partial)
            except OSError:
                shutil.copyfile(source, partial)
            os.replace(partial, target)  # of one name of a file to another does nothing, and leaves both
    except OSError as error:
        raise _no_room(target, source.stat().st_size, error) from error


def sync_folder(path: Path) -> None:
    """Names are data of the folder: without this, a power cut could keep a later change of it and lose an earlier one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # network disks that do so by themselves, or cannot
            raise
    finally:
        os.close(descriptor)


def digest_path(path: Path) -> Path:
    """Where the SHA-256 of a file lies."""
    return path.with_name(f"{path.name}.sha256")


def write_digest(path: Path, digest: str) -> None:
    """Write the SHA-256 of a file beside it, in the form that ``sha256sum -c`` reads."""
    write_whole(digest_path(path), f"{digest}  {path.name}\n".encode("ascii"))


def unlink_with_digest(path: Path) -> None:
    """Delete a file and the SHA-256 beside it, as far as they are there."""
    path.unlink(missing_ok=True)
    digest_path(path).unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_room(path: Path, size: int, error: OSError) -> CwbassError:
    if error.errno in NOT_WRITABLE:
        return ParamsError(f"{path} cannot be written: {error.strerror}. What was saved before is whole. {WRITE_ELSEWHERE}")
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free there"
    except OSError:
        free = "its folder cannot be read"
    return ServiceError(
        f"{path} cannot be written: {error.strerror or error}; it needs {size / 1e6:.1f} MB, {free}. "
        "What was saved before is whole. Make room, then run the same command again: it goes on from there."
    )
