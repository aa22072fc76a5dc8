"""Bytes under keys: in a folder, in S3 (``cwbass.storage.s3_store``), or wherever a class with these methods keeps them.

A put is whole or absent, never half, and ``if_absent`` lets exactly one of several writers
through: that is all a registry needs of its store. A new kind is a class and a line in ``OBJECT_STORES``.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from cwbass.errors import NOT_WRITABLE, DataError, ParamsError, ServiceError
from cwbass.files import partial_file, sync_folder
from cwbass.plugins import Registry, load_plugins

# Safe in every file system, in URLs and in S3. A part starts with no dot: no "..", and no name of a partial file.
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # what file systems without hard links say to one

Content = bytes | Path | IO[bytes]  # of an object; an open file may have lost its name


@runtime_checkable
class ObjectStore(Protocol):
    """Objects by key: parts of letters, digits and ``._-``, joined by ``/``.

    Every method raises :class:`DataError` for a key of another form, and :class:`ServiceError` or
    :class:`ParamsError` where the store cannot be reached or refuses.

    A registry neither fetches, deletes nor puts an open file; the mirror of a run's states does.
    """

    def put(self, key: str, content: Content, *, if_absent: bool = False) -> bool:
        """Write an object whole, from bytes or a file.

        Args:
            key: Where.
            content: What.
            if_absent: Leave an object that is there as it is, whoever wrote it and whenever.

        Returns:
            Whether it was written; False only with ``if_absent``.
        """

    def get(self, key: str) -> bytes:
        """The content of an object.

        Raises:
            DataError: There is none.
        """

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def list(self, prefix: str) -> Sequence[str]:
        """All keys that start with ``prefix``, sorted; "" for all there are. What is named otherwise is no object."""

    def fetch(self, key: str, path: Path) -> None:
        """Write the content of an object to a file; what was there is lost, whatever comes.

        Raises:
            DataError, ParamsError: There is none.
        """

    def delete(self, key: str) -> None:
        """Delete an object, which may be gone already."""

    def uri(self, key: str) -> str:
        """What a person would open: a path or a URI."""


def _s3(location: str, setting: str) -> ObjectStore:
    from cwbass.storage.s3_store import S3Store  # boto3 takes a while to load, and a folder does not need it

    return S3Store(location, setting=setting)


# Scheme -> from a URL, and the setting that names it, for messages, to the store there. A mirror adds parts to the URL.
OBJECT_STORES: Registry[Callable[[str, str], ObjectStore]] = Registry({"s3": _s3})


def open_store(location: str, setting: str = "registry.store") -> ObjectStore:
    """The store at a location.

    Args:
        location: A folder, ``s3://bucket/prefix``, or another URL of ``OBJECT_STORES``.
        setting: What names it, for messages.

    Raises:
        ParamsError: It is a URL of another kind or form.
    """
    scheme, separator, _ = location.partition("://")
    if not separator:
        return FolderStore(Path(location), setting=setting)
    load_plugins()
    if scheme not in OBJECT_STORES:
        kinds = ", ".join(f"{each}://" for each in OBJECT_STORES)
        raise ParamsError(f"{setting} is {location!r}; give a folder, or a URL that begins with {kinds}.")
    return OBJECT_STORES[scheme](location, setting)


def is_key(text: str) -> bool:
    """Whether a text names an object."""
    return all(map(_PART.fullmatch, text.split("/")))


def check_key(key: str) -> None:
    """Raise a DataError unless a text is a key."""
    if not is_key(key):
        raise DataError(f"{key!r} is no key: use letters, digits and ._- in parts joined by /, none starting with a dot.")


@contextmanager
def opened(content: Content) -> Iterator[IO[bytes]]:
    """What is to be put, as a file that is open inside.

    Raises:
        DataError: There is no such file.
    """
    if isinstance(content, Path):
        if not content.is_file():
            raise DataError(f"{content}: no such file to put into the store.")
        with content.open("rb") as file:
            yield file
    else:
        yield io.BytesIO(content) if isinstance(content, bytes) else content


class FolderStore:
    """Objects as files below a folder, which need not exist yet.

    Args:
        root: The folder.
        setting: What names it, for messages.
    """

    def __init__(self, root: Path, *, setting: str = "registry.store") -> None:
        self.root = root
        self._setting = setting

    def put(self, key: str, content: Content, *, if_absent: bool = False) -> bool:
        path = self._path(key)
        with self._service("write", path), opened(content) as source, partial_file(path) as partial:
            with partial.open("xb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
            written = self._place(partial, path, if_absent=if_absent)
            sync_folder(path.parent)
        return written

    def get(self, key: str) -> bytes:
        with self._reading(key) as file:
            return file.read()

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with self._service("read", path):
            return path.is_file()

    def list(self, prefix: str) -> Sequence[str]:
        *parts, _ = prefix.split("/")
        base = self._path("/".join(parts)) if parts else self.root
        with self._service("list", base):
            keys = [path.relative_to(self.root).as_posix() for path in base.rglob("*") if path.is_file()]
        # Hidden files, which no key names, are partial ones: of a put under way, or of one that was killed.
        return sorted(key for key in keys if key.startswith(prefix) and is_key(key))

    def fetch(self, key: str, path: Path) -> None:
        with self._reading(key, f"fill {path} from") as file, path.open("wb") as copy:
            shutil.copyfileobj(file, copy)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._service("delete", path):
            path.unlink(missing_ok=True)

    def uri(self, key: str) -> str:
        return self._path(key).as_posix()

    def _path(self, key: str) -> Path:
        check_key(key)
        return self.root / key

    @contextmanager
    def _reading(self, key: str, verb: str = "read") -> Iterator[IO[bytes]]:
        path = self._path(key)
        with self._service(verb, path):
            try:
                file = path.open("rb")
            except (FileNotFoundError, NotADirectoryError) as error:
                raise DataError(f"{path}: no such object in the store. Check name, version and {self._setting}.") from error
            with file:
                yield file

    @contextmanager
    def _service(self, verb: str, path: Path) -> Iterator[None]:
        """What the file system refuses is a failure of the store; where it would again, of its setting."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            kind = ParamsError if error.errno in NOT_WRITABLE else ServiceError
            raise kind(f"cannot {verb} {path}: {reason}. Check {self._setting}, its permissions and its disk.") from error

    def _place(self, partial: Path, path: Path, *, if_absent: bool) -> bool:
        if not if_absent:
            os.replace(partial, path)
            return True
        try:
            os.link(partial, path)  # unlike a rename, fails where there is a file
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise ParamsError(
                f"{path.parent} is on a file system without hard links ({error.strerror}), where one of several writers could write over "
                f"another. Set {self._setting} to a folder on another file system, or to s3://bucket/prefix."
            ) from error
        return True
