"""S3, or what speaks like it: one client, and its failures as our errors."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as EndpointError

from cwbass.errors import ParamsError, ServiceError

ATTEMPTS = 3
_PASSING = (408, 412, 429)  # timeout, changed while it was read, too many requests


def s3_client() -> Any:
    """A client with the default credential chain; boto3 itself reads ``AWS_ENDPOINT_URL`` and the region."""
    retries = {"total_max_attempts": ATTEMPTS, "mode": "standard"}
    return boto3.client("s3", config=Config(connect_timeout=5, read_timeout=30, retries=retries))


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``.

    Raises:
        ParamsError: It has another form.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not key:
        raise ParamsError(f"{uri!r} is not of the form s3://bucket/key.")
    return bucket, key


def download(uri: str, folder: Path) -> Path:
    """A local copy of an object; it is fetched again only when its ETag or size has changed.

    Args:
        uri: ``s3://bucket/key``.
        folder: Where copies are kept; made if need be.

    Raises:
        ParamsError: There is no such object, access is refused, or the folder cannot be written.
        ServiceError: The store cannot be reached, or failed ``ATTEMPTS`` times.
    """
    bucket, key = split_uri(uri)
    with s3_failures(uri):
        client = s3_client()
        head = client.head_object(Bucket=bucket, Key=key)
        identity = f"{client.meta.endpoint_url} {uri} {head['ETag']}"
        name = PurePosixPath(key)
        path = folder / f"{name.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}{name.suffix}"
        if not (path.is_file() and path.stat().st_size == head["ContentLength"]):
            _fetch(client, bucket, key, path, head["ContentLength"])
    return path


@contextmanager
def s3_failures(uri: str) -> Iterator[None]:
    """What boto3 raises inside becomes a ParamsError if a retry cannot help, else a ServiceError."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status == 404:
            raise ParamsError(f"{uri}: no such object or bucket. Check the URI and AWS_ENDPOINT_URL.") from error
        if 300 <= status < 500 and status not in _PASSING:
            raise ParamsError(f"{uri}: refused ({_line(error)}). Check the credentials, their rights and AWS_REGION.") from error
        raise ServiceError(f"{uri}: the store failed {ATTEMPTS} times ({_line(error)}). Try again later.") from error
    except (EndpointError, HTTPClientError, IncompleteReadError, CredentialRetrievalError, Boto3Error) as error:
        raise ServiceError(f"{uri}: out of reach ({_line(error)}). Check the network and AWS_ENDPOINT_URL.") from error
    except (BotoCoreError, ValueError) as error:  # nothing was sent: no credentials, a bad bucket, an endpoint that is no URL
        raise ParamsError(f"{uri}: {_line(error)}. Check the AWS_... variables or the profile.") from error
    except OSError as error:
        raise ParamsError(f"{uri} cannot be kept: {_line(error)}. Check the folder and its disk.") from error


def _fetch(client: Any, bucket: str, key: str, path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        client.download_file(bucket, key, str(partial), Config=TransferConfig(num_download_attempts=ATTEMPTS))
        if (came := partial.stat().st_size) != size:
            raise ServiceError(f"s3://{bucket}/{key}: {came} bytes came of {size}. It may be changing; try again.")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _line(error: BaseException) -> str:
    text = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))  # an endpoint may hold a password
    return text[:300] or type(error).__name__
