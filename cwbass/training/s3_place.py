"""A second place for a run's states in S3, or in what speaks like it."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from cwbass.s3 import list_objects, s3_client, s3_failures, split_uri


class S3Place:
    """A :class:`cwbass.training.mirror.Place` below ``s3://bucket/prefix``; see :mod:`cwbass.s3` for credentials and endpoint."""

    def __init__(self, uri: str) -> None:
        self.name = uri.rstrip("/")
        self.bucket, self.prefix = split_uri(self.name)
        with s3_failures(self.name):
            self.client = s3_client()

    def put(self, key: str, file: IO[bytes]) -> None:
        with s3_failures(f"{self.name}/{key}"):
            self.client.upload_fileobj(file, self.bucket, f"{self.prefix}/{key}")

    def get(self, key: str, path: Path) -> None:
        with s3_failures(f"{self.name}/{key}"):
            self.client.download_file(self.bucket, f"{self.prefix}/{key}", str(path))

    def keys(self) -> set[str]:
        with s3_failures(self.name):
            found = list_objects(self.client, self.bucket, f"{self.prefix}/")
            return {item["Key"].removeprefix(f"{self.prefix}/") for item in found}

    def delete(self, key: str) -> None:
        with s3_failures(f"{self.name}/{key}"):
            self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")
