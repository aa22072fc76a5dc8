"""Objects in S3, or in what speaks like it."""

from __future__ import annotations

import mimetypes
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from botocore.exceptions import ClientError, FlexibleChecksumError, HTTPClientError, IncompleteReadError

from cwbass.errors import DataError, ParamsError
from cwbass.storage import Content, check_key, is_key, opened
from cwbass.storage.s3 import ATTEMPTS, list_objects, refuse_password, s3_client, s3_failures

MAX_BYTES = 5 << 30  # of one PUT
_PROBE = ".conditional-put"  # no key of ours starts with a dot
_WRITER = "cwbass-put"  # metadata: which put an object is from


class S3Store:
    """Objects below ``s3://bucket/prefix``; needs the rights to get, put and list, and to delete for :meth:`delete` alone.

    With ``if_absent`` an object is sent as one PUT, not in parts: a PUT with ``If-None-Match: *`` lets
    one of several writers through on every server that knows the header at all, while finishing an
    upload in parts does not everywhere (docs/decisions/0017-aliases-are-numbered-entries.md).

    Args:
        location: ``s3://bucket`` or ``s3://bucket/prefix``.
        setting: What names it, for messages.

    Raises:
        ParamsError: The location has another form, or no client can be made.
    """

    def __init__(self, location: str, *, setting: str = "registry.store") -> None:
        self.bucket, _, prefix = location.removeprefix("s3://").rstrip("/").partition("/")
        if not location.startswith("s3://") or not self.bucket:
            raise ParamsError(f"{setting} is {location!r}; write s3://bucket or s3://bucket/prefix.")
        refuse_password(self.bucket)
        self.prefix = f"{prefix}/" if prefix else ""
        self._setting = setting
        with s3_failures(location):
            self.client = s3_client()
        self._conditions_hold = False

    def put(self, key: str, content: Content, *, if_absent: bool = False) -> bool:
        check_key(key)
        with self._failures(key), opened(content) as body:
            if not if_absent:
                self.client.upload_fileobj(body, self.bucket, self.prefix + key, ExtraArgs={"ContentType": _kind(key)})
                return True
            if (size := body.seek(0, os.SEEK_END)) > MAX_BYTES:
                raise DataError(f"{self.uri(key)} would have {size} bytes; S3 takes {MAX_BYTES} at once. Ship a smaller model.")
            self._check_conditions()
            return self._send_if_absent(key, body)

    def get(self, key: str) -> bytes:
        check_key(key)
        with self._failures(key):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    content: bytes = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()
                    return content
                except ClientError as error:
                    if error.response.get("Error", {}).get("Code") != "NoSuchKey":
                        raise
                    raise DataError(
                        f"{self._where(key)}: no such object in the store. Check name, version and {self._setting}."
                    ) from error
                except (IncompleteReadError, FlexibleChecksumError, HTTPClientError):  # boto3 retries the request, not the body
                    if attempt == ATTEMPTS:
                        raise
        raise AssertionError("every attempt returns or raises")

    def exists(self, key: str) -> bool:
        check_key(key)
        with self._failures(key):  # unlike HEAD, a listing tells a missing bucket from a missing object
            found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix + key, MaxKeys=1)
        return any(each.get("Key") == self.prefix + key for each in found.get("Contents", ()))

    def list(self, prefix: str) -> Sequence[str]:
        with self._failures(prefix):
            found = list_objects(self.client, self.bucket, self.prefix + prefix)
            keys = [each["Key"].removeprefix(self.prefix) for each in found]
        return sorted(filter(is_key, keys))

    def fetch(self, key: str, path: Path) -> None:
        check_key(key)
        with self._failures(key):
            self.client.download_file(self.bucket, self.prefix + key, str(path))

    def delete(self, key: str) -> None:
        check_key(key)
        with self._failures(key):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def uri(self, key: str) -> str:
        check_key(key)
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def _send_if_absent(self, key: str, body: IO[bytes]) -> bool:
        mine = secrets.token_hex(16)
        said = {"ContentType": _kind(key), "IfNoneMatch": "*", "Metadata": {_WRITER: mine}}
        for attempt in range(1, ATTEMPTS + 1):
            body.seek(0)
            try:
                self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body, **said)
                return True
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 412:
                    # boto3 may have sent it twice, because the answer to the first was lost.
                    found = self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
                    return bool(found["Metadata"].get(_WRITER) == mine)
                if status != 409 or attempt == ATTEMPTS:  # 409: another write is under way, ask again who won
                    raise
                time.sleep(0.2 * attempt)
        raise AssertionError("every attempt returns or raises")

    def _check_conditions(self) -> None:
        """A server that does not know the condition would overwrite in silence, so it is asked, once."""
        if self._conditions_hold:
            return
        for _ in range(2):  # the first may be the one that writes it
            try:
                self.client.put_object(Bucket=self.bucket, Key=self.prefix + _PROBE, Body=b"", IfNoneMatch="*")
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 501:
                    break
                if status not in (409, 412):
                    raise
                self._conditions_hold = True
                return
        raise ParamsError(
            f"{self._where(_PROBE)}: this server ignores If-None-Match, so two writers could overwrite each other. "
            "Use a newer version of it, or another store."
        )

    @contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        with s3_failures(f"s3://{self.bucket}/{self.prefix}{key}", self.client.meta.endpoint_url):
            yield

    def _where(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key} at {self.client.meta.endpoint_url}"


def _kind(key: str) -> str:
    """Media type: a browser shows the report."""
    return mimetypes.guess_type(key)[0] or "application/octet-stream"
