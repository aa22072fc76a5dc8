"""Objects in S3, or in what speaks like it."""

from __future__ import annotations

import mimetypes
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, FlexibleChecksumError, HTTPClientError, IncompleteReadError

from cwbass.errors import DataError, ParamsError
from cwbass.s3 import ATTEMPTS, list_objects, refuse_password, s3_client, s3_failures
from cwbass.storage import check_key

MAX_BYTES = 5 << 30  # of one PUT
_PROBE = ".conditional-put"  # no key of ours starts with a dot
_WRITER = "cwbass-put"  # metadata: which put an object is from


class S3Store:
    """Objects below ``s3://bucket/prefix``; needs the rights to get, put and list, not to delete.

    An object is sent as one PUT, not in parts: a PUT with ``If-None-Match: *`` lets one of several
    writers through on every server that knows the header at all, while finishing an upload in parts
    does not everywhere (docs/decisions/0017-aliases-are-numbered-entries.md).

    Args:
        location: ``s3://bucket`` or ``s3://bucket/prefix``.

    Raises:
        ParamsError: The location has another form, or no client can be made.
    """

    def __init__(self, location: str) -> None:
        self.bucket, _, prefix = location.removeprefix("s3://").rstrip("/").partition("/")
        if not location.startswith("s3://") or not self.bucket:
            raise ParamsError(f"registry.store is {location!r}; write s3://bucket or s3://bucket/prefix.")
        refuse_password(self.bucket)
        try:
            self.prefix = "/".join(check_key(prefix)) + "/" if prefix else ""
        except DataError as error:
            raise ParamsError(f"registry.store is {location!r}: {error}") from error
        with s3_failures(location):
            self.client = s3_client()
        self._conditions_hold = False

    def put(self, key: str, content: bytes | Path, *, if_absent: bool = False) -> bool:
        check_key(key)
        if isinstance(content, Path) and not content.is_file():
            raise DataError(f"{content}: no such file to put into the store.")
        if (size := content.stat().st_size if isinstance(content, Path) else len(content)) > MAX_BYTES:
            raise DataError(f"{self.uri(key)} would have {size} bytes; S3 takes {MAX_BYTES} at once. Ship a smaller model.")
        with self._failures(key):
            if not if_absent:
                self._send(key, content)
                return True
            self._check_conditions()
            return self._send_if_absent(key, content)

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
                        f"{self._where(key)}: no such object in the store. Check name, version and registry.store."
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
        return sorted(key for key in keys if not re.search(r"(^|/)(\.|$)", key))

    def uri(self, key: str) -> str:
        check_key(key)
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def _send(self, key: str, content: bytes | Path, **condition: Any) -> None:
        kind = mimetypes.guess_type(key)[0] or "application/octet-stream"  # a browser shows the report
        with ExitStack() as stack:
            body = stack.enter_context(content.open("rb")) if isinstance(content, Path) else content
            self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body, ContentType=kind, **condition)

    def _send_if_absent(self, key: str, content: bytes | Path) -> bool:
        mine = secrets.token_hex(16)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._send(key, content, IfNoneMatch="*", Metadata={_WRITER: mine})
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
