"""A dataset that lies in S3, as a folder of this machine."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cwbass.errors import DataError, counted
from cwbass.storage.s3 import CONNECTIONS, fetch, list_objects, s3_client, s3_failures, split_uri

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Object:
    key: str
    path: str  # below the prefix
    size: int  # bytes
    etag: str


def s3_dataset(data: str, copies: Path) -> Path:
    """The folder with a copy of the objects below an ``s3://bucket/prefix``.

    A copy is named after the keys, sizes and ETags of its objects: it is made once, for all runs that see the
    folder of copies, and data that change get a new one. It appears whole or not at all.

    Args:
        data: ``s3://bucket/prefix``.
        copies: Where copies are kept; made if need be.

    Raises:
        DataError: There is nothing below the prefix, or a key is no path that could be written.
        ParamsError: The bucket is not there, access is refused, or the copy cannot be written.
        ServiceError: The store cannot be reached, or failed.
    """
    bucket, prefix = split_uri(data)
    with s3_failures(data):
        client = s3_client()
        objects = _list(client, bucket, f"{prefix.rstrip('/')}/")
        if not objects:
            raise DataError(f"{data}: there are no objects below it. Check bucket and prefix.")
        identity = "\n".join(f"{item.path} {item.size} {item.etag}" for item in objects)
        path = copies / hashlib.sha256(f"{data.rstrip('/')}\n{identity}".encode()).hexdigest()[:16]
        count = counted(len(objects), "object")
        if path.is_dir():
            logger.info("%s: %s, copied before to %s", data, count, path)
            return path
        logger.info("%s: copying %s, %.1f MB", data, count, sum(item.size for item in objects) / 1e6)
        _copy(client, bucket, objects, path)
    return path


def _list(client: Any, bucket: str, prefix: str) -> list[_Object]:
    items = list_objects(client, bucket, prefix)
    found = [_Object(item["Key"], item["Key"].removeprefix(prefix), item["Size"], item["ETag"]) for item in items]
    found = [item for item in found if item.path and not item.path.endswith("/")]  # consoles make empty objects for folders
    for item in found:
        if any(part in ("", ".", "..") for part in item.path.split("/")) or "\0" in item.path:
            raise DataError(f"s3://{bucket}/{item.key}: {item.path!r} is no path below a folder. Rename the object.")
    return sorted(found, key=lambda item: item.path)


def _copy(client: Any, bucket: str, objects: list[_Object], path: Path) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")

    def copy(item: _Object) -> None:
        target = partial / PurePosixPath(item.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fetch(client, bucket, item.key, target, item.size, threads=False)

    pool = ThreadPoolExecutor(CONNECTIONS)
    try:
        for _ in pool.map(copy, objects):  # raises the first failure
            pass
        _publish(partial, path)
    finally:
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, path: Path) -> None:
    try:
        os.replace(partial, path)
    except OSError:
        if not path.is_dir():  # else another process was faster, with the same copy
            raise
