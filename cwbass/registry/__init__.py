"""Versions of a model: written once, whole, checked when read.

    models/NAME/versions/1.0.0/
        config.json      written first, if absent: claims the number, and says with which contract
        ...              weights, ONNX, scores, params, provenance, card, report
        SHA256SUMS       of the above; `sha256sum -c` reads it
        MANIFEST.json    written last: a version exists from here on

A writer that dies in between leaves a number nobody uses, and nothing that reads as a version.
There is no server and no lock: all of it rests on the store's ``put(if_absent=True)``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cwbass.config import ModelConfig
from cwbass.errors import DataError, ServiceError
from cwbass.storage import ObjectStore

if TYPE_CHECKING:
    from cwbass.models.base import SegmentationNet

SCHEMA = 1
CONFIG, WEIGHTS, SUMS, MANIFEST = "config.json", "model.safetensors", "SHA256SUMS", "MANIFEST.json"


@dataclass(frozen=True, slots=True, order=True)
class Number:
    """Semantic version. Major: classes or input changed. Minor: new weights. Patch is not given out here."""

    major: int
    minor: int = 0
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of ``str``.

        Raises:
            DataError: The text is not of the form 1.2.3.
        """
        match = re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", text, re.ASCII)
        if match is None:
            raise DataError(f"{text!r} is no version; write it as 1.2.3.")
        return cls(*(int(part) for part in match.groups()))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    def after(self, *, same_contract: bool) -> Number:
        """The number of the next model."""
        return Number(self.major, self.minor + 1) if same_contract else Number(self.major + 1)


@dataclass(frozen=True, slots=True)
class Version:
    """A registered model."""

    name: str
    number: Number
    uri: str  # of its folder
    digests: Mapping[str, str]  # file -> SHA-256, hex
    manifest: bytes  # MANIFEST.json

    @property
    def manifest_sha256(self) -> str:
        """Names the version and all that is in it."""
        return hashlib.sha256(self.manifest).hexdigest()


def register_version(store: ObjectStore, *, name: str, files: Mapping[str, bytes | Path]) -> Version:
    """Write a new version; its number follows from ``config.json``.

    The first is 1.0.0. Then the major number rises where class names, mean or standard deviation
    differ from the latest version's, else the minor one.

    Args:
        store: Where to.
        name: Of the model.
        files: What the version holds, by file name; ``config.json`` must be one of them.

    Raises:
        DataError: A file is missing, or ``config.json`` says no contract.
        ServiceError: The store fails, or something else writes into the version.
    """
    if CONFIG not in files:
        raise DataError(f"a version needs a {CONFIG}; there are only {', '.join(sorted(files)) or 'no files'}.")
    # All is read before anything is written: a file that changes while others are sent would not be what its digest says.
    contents = {file: _read_bytes(content) for file, content in files.items()}
    digests = {file: _sha256(content) for file, content in sorted(contents.items())}
    number = _claim(store, name, contents.pop(CONFIG))
    sums = "".join(f"{digest}  {file}\n" for file, digest in digests.items()).encode()
    manifest = _json(
        {"schema": SCHEMA, "name": name, "version": str(number), "files": digests | {SUMS: hashlib.sha256(sums).hexdigest()}}
    )
    for file, content in {**contents, SUMS: sums, MANIFEST: manifest}.items():
        key = _key(name, number, file)
        if not store.put(key, content, if_absent=True):
            raise ServiceError(f"{store.uri(key)} was written by something else. Register again for a number of its own.")
    return _parse_manifest(store, name, number, manifest)


def list_versions(store: ObjectStore, name: str) -> list[Number]:
    """Numbers of all whole versions, ascending."""
    pattern = re.compile(re.escape(f"models/{name}/versions/") + r"(\d+\.\d+\.\d+)/" + re.escape(MANIFEST), re.ASCII)
    matches = (pattern.fullmatch(key) for key in store.list(f"models/{name}/versions/"))
    return sorted(Number.parse(match[1]) for match in matches if match)


def latest(store: ObjectStore, name: str) -> Version | None:
    """The version with the highest number."""
    numbers = list_versions(store, name)
    return find_version(store, name, numbers[-1]) if numbers else None


def find_version(store: ObjectStore, name: str, number: Number) -> Version:
    """What the manifest says; no other file is read.

    Raises:
        DataError: There is no such version, or its manifest is not one.
    """
    return _parse_manifest(store, name, number, store.get(_key(name, number, MANIFEST)))


def find_same(store: ObjectStore, name: str, files: Mapping[str, bytes | Path]) -> Version | None:
    """The highest version that holds exactly these bytes under these names, among others."""
    wanted = {file: _sha256(_read_bytes(content)) for file, content in files.items()}
    for number in reversed(list_versions(store, name)):
        version = find_version(store, name, number)
        if wanted.items() <= version.digests.items():
            return version
    return None


def read_version(store: ObjectStore, version: Version) -> dict[str, bytes]:
    """Every file of a version, each checked against its SHA-256.

    Raises:
        DataError: A file is missing.
        ServiceError: A file is not what was registered.
    """
    return {file: read_file(store, version, file) for file in version.digests}


def verify_version(store: ObjectStore, version: Version) -> None:
    """As :func:`read_version`, with no more than one file in memory."""
    for file in version.digests:
        read_file(store, version, file)


def read_file(store: ObjectStore, version: Version, file: str) -> bytes:
    """One file of a version, checked against its SHA-256.

    Raises:
        DataError: It is missing.
        ServiceError: It is not what was registered, read twice over.
    """
    key, digest = _key(version.name, version.number, file), version.digests[file]
    for _ in range(2):  # damage on the way passes, damage at rest stays
        content = store.get(key)
        if (found := _sha256(content)) == digest:
            return content
    raise ServiceError(
        f"{store.uri(key)} was changed after it was registered: its SHA-256 is {found[:12]}, {MANIFEST} says "
        f"{digest[:12]}. Restore it, or use another version."
    )


def list_models(store: ObjectStore) -> list[str]:
    """Names of the models that have a whole version, sorted."""
    pattern = re.compile(r"models/([^/]+)/versions/\d+\.\d+\.\d+/" + re.escape(MANIFEST), re.ASCII)
    return sorted({match[1] for key in store.list("models/") if (match := pattern.fullmatch(key))})


def load_network(files: Mapping[str, bytes]) -> SegmentationNet:
    """The network of a version, in eval mode, on the CPU.

    Args:
        files: From :func:`read_version`.
    """
    # Torch takes seconds to import, and nothing else here needs it.
    import safetensors.torch

    from cwbass.training.checkpoint import build_with_weights

    config = json.loads(files[CONFIG])
    model = ModelConfig.model_validate_json(json.dumps(config["model"]))
    return build_with_weights(model, config["classes"], safetensors.torch.load(files[WEIGHTS]), WEIGHTS)


def _claim(store: ObjectStore, name: str, config: bytes) -> Number:
    """Take the next free number by putting ``config.json`` there; of several writers, one gets each number."""
    contract = _contract(config, CONFIG)
    newest = latest(store, name)
    number = Number(1) if newest is None else _next(store, name, newest.number, contract)
    while not store.put(_key(name, number, CONFIG), config, if_absent=True):
        number = _next(store, name, number, contract)
    return number


def _next(store: ObjectStore, name: str, number: Number, contract: list[Any]) -> Number:
    key = _key(name, number, CONFIG)
    return number.after(same_contract=_contract(store.get(key), store.uri(key)) == contract)


def _contract(config: bytes, name: str) -> list[Any]:
    """What a caller of the model relies on: what its outputs mean, and what is done to its inputs."""
    try:
        values = json.loads(config)
        return [values["classes"], values["model"]["mean"], values["model"]["std"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{name} is no config of a model ({error!r}): it must hold classes, model.mean and model.std.") from error


def read_manifest(path: Path) -> Version:
    """A version by the manifest in its folder.

    Raises:
        DataError: The file is none.
    """
    content = path.read_bytes()
    try:
        values = json.loads(content)
        name, number = str(values["name"]), Number.parse(values["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is no manifest of a version ({error!r}). Restore it, or use another version.") from error
    return _version(content, path.as_posix(), name, number)


def _parse_manifest(store: ObjectStore, name: str, number: Number, content: bytes) -> Version:
    return _version(content, store.uri(_key(name, number, MANIFEST)), name, number)


def _version(content: bytes, uri: str, name: str, number: Number) -> Version:
    try:
        values = json.loads(content)
        schema, files = values["schema"], {str(file): str(digest) for file, digest in dict(values["files"]).items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{uri} is no manifest of a version ({error!r}). Restore it, or use another version.") from error
    if schema != SCHEMA:
        raise DataError(f"{uri} has schema {schema!r}, this cwbass reads {SCHEMA}. Use the cwbass that wrote it.")
    if (says := (values.get("name"), values.get("version"))) != (name, str(number)):
        raise DataError(
            f"{uri} is the manifest of {says[0]} {says[1]}, not of {name} {number}. Restore it, or use another version."
        )
    return Version(name, number, uri.removesuffix(f"/{MANIFEST}"), files, content)


def _key(name: str, number: Number, file: str) -> str:
    return f"models/{name}/versions/{number}/{file}"


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _read_bytes(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except OSError as error:
        raise DataError(f"{content} cannot be read, so it cannot be registered: {error.strerror or error}.") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
