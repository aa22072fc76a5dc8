"""S3, or what speaks like it: one client, and its failures as our errors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.exceptions import ConnectionError as EndpointError

from cwbass.errors import FULL, ParamsError, ServiceError, one_line, without_password
from cwbass.files import partial_file

ATTEMPTS = 3
CONNECT_TIMEOUT, READ_TIMEOUT = 3, 20  # seconds, for each attempt
CONNECTIONS = 16  # that a client keeps open: as many objects may be copied at a time
MAX_OBJECT = 1 << 40  # bytes; what claims to be larger is no object of ours
ROLE_TOKEN = "AWS_WEB_IDENTITY_TOKEN_FILE"  # IRSA sets it
CHECKSUM = "CWBASS_S3_CHECKSUM"  # when_required for stores that do not know the checksums boto3 sends since 1.36
_PASSING = (408, 409, 412, 429)  # timeout, a write at the same moment, changed while it was read, too many requests
_PASSING_CODES = ("RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch")  # with status 400
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "No such file")  # of TLS; the last is AWS_CA_BUNDLE


def s3_client() -> Any:
    """A client with the default credential chain; boto3 itself reads ``AWS_ENDPOINT_URL`` and the region.

    A server that cannot be reached is given up within about ten seconds, one that does not answer
    within about a minute.

    Raises:
        ParamsError: ``CWBASS_S3_CHECKSUM`` is neither when_supported nor when_required.
    """
    checksum = os.environ.get(CHECKSUM)  # None leaves it to boto3 and its AWS_... variables
    if checksum not in (None, "when_supported", "when_required"):
        raise ParamsError(f"{CHECKSUM} is {checksum!r}; set it to when_required or when_supported, or not at all.")
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=CONNECTIONS,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        request_checksum_calculation=checksum,
        response_checksum_validation=checksum,
    )
    client = boto3.session.Session().client("s3", config=config)  # the default session would keep old credentials
    client.meta.events.register("after-call.s3.HeadObject", _refuse_impossible_size)
    return client


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``.

    Raises:
        ParamsError: It has another form.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not key:
        raise ParamsError(f"{uri!r} is not of the form s3://bucket/key.")
    refuse_password(bucket)
    return bucket, key


def refuse_password(bucket: str) -> None:
    """Raise a ParamsError for ``key:secret@bucket``, before boto3 or a log repeats it."""
    _, at, name = bucket.rpartition("@")
    if at:
        raise ParamsError(
            f"a URI of the bucket {name} holds a user or password. Remove it; give credentials as AWS_... variables."
        )


def find_object(uri: str) -> None:
    """See that an object is there and may be looked at; nothing is fetched.

    Raises:
        ParamsError: There is no such object, or access is refused.
        ServiceError: The store cannot be reached, or failed ``ATTEMPTS`` times.
    """
    bucket, key = split_uri(uri)
    with s3_failures(uri):
        s3_client().head_object(Bucket=bucket, Key=key)


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
            with partial_file(path) as partial:
                fetch(client, bucket, key, partial, head["ContentLength"])
                os.replace(partial, path)
    return path


def list_objects(client: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """The objects below a prefix, with Key, Size and ETag; inside :func:`s3_failures`.

    Raises:
        ServiceError: An answer is no list. An empty one would be taken for an empty bucket, and that for a reason to begin anew.
    """
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        items = page.get("Contents", [])
        whole = "IsTruncated" in page and page.get("KeyCount", len(items)) == len(items)
        if not whole or not all({"Key", "Size", "ETag"} <= item.keys() and item["Key"].startswith(prefix) for item in items):
            raise ServiceError(
                f"s3://{bucket}/{prefix}: the store's answer is not a whole list of objects. Check the network, then run again."
            )
        yield from items


@contextmanager
def s3_failures(uri: str, endpoint: str | None = None) -> Iterator[None]:
    """What boto3 raises inside becomes a ParamsError if a retry cannot help, else a ServiceError.

    Args:
        uri: What is read or written, for the message.
        endpoint: URL of the server, likewise.
    """
    where = f"{uri} at {without_password(endpoint)}" if endpoint else uri
    try:
        yield
    except ClientError as error:
        answer = error.response
        status, code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), answer.get("Error", {}).get("Code")
        if code in _EXPIRED:
            raise ServiceError(f"{where}: the credentials have expired ({one_line(error)}). Renew them and run again.") from error
        if status == 404:
            what = "bucket" if code == "NoSuchBucket" else "object or bucket"
            raise ParamsError(f"{where}: no such {what}. Check the URI and AWS_ENDPOINT_URL.") from error
        if 300 <= status < 400:
            raise _redirected(where) from error
        if 400 <= status < 500 and status not in _PASSING and code not in _PASSING_CODES:
            raise ParamsError(
                f"{where}: refused ({one_line(error)}). Check the credentials, their rights and AWS_DEFAULT_REGION."
            ) from error
        raise ServiceError(f"{where}: the store failed {ATTEMPTS} times ({one_line(error)}). Try again later.") from error
    except RecursionError:  # boto3 takes a redirect for another region, asks for it, and is redirected again
        raise _redirected(where) from None
    except FlexibleChecksumError as error:
        raise ServiceError(f"{where}: damaged on its way, {ATTEMPTS} times ({one_line(error)}). Check the network.") from error
    except SSLError as error:
        if any(reason in str(error) for reason in _UNTRUSTED):
            raise ParamsError(
                f"{where}: {one_line(error)}. Check http or https; AWS_CA_BUNDLE names the certificate of a private authority."
            ) from error
        raise _out_of_reach(where, error) from error
    except (EndpointError, HTTPClientError, IncompleteReadError, CredentialRetrievalError, Boto3Error) as error:
        raise _out_of_reach(where, error) from error
    except (BotoCoreError, ValueError) as error:  # nothing was sent: no credentials, a bad bucket, an endpoint that is no URL
        raise ParamsError(f"{where}: {one_line(error)}. Check the AWS_... variables or the profile.") from error
    except (AttributeError, KeyError, OverflowError, TypeError) as error:  # what boto3 makes of an answer that is none
        raise ServiceError(
            f"{where}: the store's answer is not understood ({type(error).__name__}: {one_line(error)}). "
            "Check AWS_ENDPOINT_URL and the network."
        ) from error
    except OSError as error:
        if error.filename and error.filename == os.environ.get(ROLE_TOKEN):
            raise ParamsError(
                f"{where}: {error.filename}: {error.strerror}. {ROLE_TOKEN} names it, the token of the role: "
                "check the pod's service account and user, or unset it."
            ) from error
        kind = ServiceError if error.errno in FULL else ParamsError
        raise kind(f"{uri} cannot be kept: {one_line(error)}. Check the folder and its disk.") from error


def _out_of_reach(where: str, error: Exception) -> ServiceError:
    return ServiceError(f"{where}: out of reach ({one_line(error)}). Check the network and AWS_ENDPOINT_URL.")


def _redirected(where: str) -> ParamsError:
    return ParamsError(
        f"{where}: the server sends requests elsewhere, as one does that wants https or a login, or where the bucket is in another "
        "region. Check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION."
    )


def _refuse_impossible_size(http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
    """boto3 divides an object into parts by the size that HEAD says, and would do so for days."""
    size = parsed.get("ContentLength", -1)
    if http_response.status_code < 300 and not 0 <= size <= MAX_OBJECT:
        raise ServiceError(
            f"{http_response.url.partition('?')[0]}: the store says that it has {size} bytes. Check the object and the network."
        )


def fetch(client: Any, bucket: str, key: str, path: Path, size: int, *, threads: bool = True) -> None:
    """Write an object to a file; inside :func:`s3_failures`.

    Args:
        client: Of boto3.
        bucket: Where the object is.
        key: Likewise.
        path: The file; what was there is lost, whatever comes.
        size: Of the object, bytes.
        threads: Whether its parts are fetched side by side.

    Raises:
        ServiceError: Another number of bytes came.
    """
    client.download_file(bucket, key, str(path), Config=TransferConfig(num_download_attempts=ATTEMPTS, use_threads=threads))
    if (came := path.stat().st_size) != size:
        raise ServiceError(f"s3://{bucket}/{key}: {came} bytes came of {size}. It may be changing; try again.")
