"""Bytes under keys: in a folder, in S3 (``cwbass.s3_store``), or wherever a class with these five methods keeps them.

A put is whole or absent, never half, and ``if_absent`` lets exactly one of several writers
through: that is all a registry needs of its store.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cwbass.errors import DataError, ParamsError, ServiceError
from cwbass.files import partial_file, sync_folder

# Safe in every file system, in URLs and in S3. A part starts with no dot: no "..", and no name of a partial file.
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class ObjectStore(Protocol):
    """Objects by key: parts of letters, digits and ``._-``, joined by ``/``.

    Every method raises :class:`DataError` for a key of another form, and :class:`ServiceError`
    where the store cannot be reached or refuses.
    """

    def put(self, key: str, content: bytes | Path, *, if_absent: bool = False) -> bool:
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
        """All keys that start with ``prefix``, sorted; "" for all there are."""

    def uri(self, key: str) -> str:
        """What a person would open: a path or a URI."""


def open_store(location: str) -> ObjectStore:
    """The store that ``registry.store`` names.

    Args:
        location: A folder, or ``s3://bucket/prefix``.

    Raises:
        ParamsError: It is a URI of another kind.
    """
    if location.startswith("s3://"):
        from cwbass.s3_store import S3Store  # boto3 takes a while to load, and a folder does not need it

        return S3Store(location)
    if "://" in location:
        raise ParamsError(f"registry.store is {location!r}; give a folder or s3://bucket/prefix.")
    return FolderStore(Path(location))


def check_key(key: str) -> list[str]:
    """The parts of a key.

    Raises:
        DataError: It is none.
    """
    parts = key.split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        raise DataError(f"{key!r} is no key: use letters, digits and ._- in parts joined by /, none starting with a dot.")
    return parts


class FolderStore:
    """Objects as files below a folder, which need not exist yet.

    Args:
        root: The folder.
        setting: What names it, for messages.
    """

    def __init__(self, root: Path, *, setting: str = "registry.store") -> None:
        self.root = root
        self._setting = setting

    def put(self, key: str, content: bytes | Path, *, if_absent: bool = False) -> bool:
        path = self._path(key)
        with self._service("write", path), partial_file(path) as partial:
            _write_through(partial, content)
            written = _place(partial, path, if_absent=if_absent)
            sync_folder(path.parent)
        return written

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._service("read", path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError) as error:
                raise DataError(f"{path}: no such object in the store. Check name, version and registry.store.") from error

    def exists(self, key: str) -> bool:
        path = self._path(key)
        with self._service("read", path):
            return path.is_file()

    def list(self, prefix: str) -> Sequence[str]:
        *parts, _ = prefix.split("/")
        base = self._path("/".join(parts)) if parts else self.root
        with self._service("list", base):
            # Hidden files are partial ones: of a put under way, or of one that was killed.
            files = (path for path in base.rglob("*") if not path.name.startswith(".") and path.is_file())
            keys = [path.relative_to(self.root).as_posix() for path in files]
        return sorted(key for key in keys if key.startswith(prefix))

    def uri(self, key: str) -> str:
        return self._path(key).as_posix()

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*check_key(key))

    @contextmanager
    def _service(self, verb: str, path: Path) -> Iterator[None]:
        """What the file system refuses is a failure of the store."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise ServiceError(f"cannot {verb} {path}: {reason}. Check {self._setting}, its permissions and its disk.") from error


def _write_through(path: Path, content: bytes | Path) -> None:
    with path.open("xb") as file:
        if isinstance(content, Path):
            with _source(content).open("rb") as source:
                shutil.copyfileobj(source, file)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _source(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no such file to put into the store.")
    return path


def _place(partial: Path, path: Path, *, if_absent: bool) -> bool:
    if not if_absent:
        os.replace(partial, path)
        return True
    try:
        os.link(partial, path)  # unlike a rename, fails where there is a file
    except FileExistsError:
        return False
    return True
