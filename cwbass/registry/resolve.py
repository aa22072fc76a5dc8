"""From what a user writes after ``--checkpoint`` to a model that was checked.

    artifacts/train/best.pt, artifacts/train    a checkpoint, a training's folder
    s3://bucket/runs/best.pt                    a checkpoint in S3
    registry/models/shapes/versions/1.4.0       a version's folder; s3://... likewise
    shapes@1.4.0, shapes@champion               a version of the registry

All of it becomes a local path first (:func:`resolve`); a version is then read as the checkpoint it
was made from, without optimiser and history (:func:`open_checkpoint`).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cwbass.errors import CheckpointError, CwbassError, DataError, ParamsError, ServiceError
from cwbass.files import digest_path, file_sha256
from cwbass.registry import CONFIG, MANIFEST, WEIGHTS, Number, Version, find_version, read_file, read_manifest
from cwbass.registry.aliases import named_version
from cwbass.storage import FolderStore, ObjectStore, open_store
from cwbass.training.checkpoint import Checkpoint, load_checkpoint, no_checkpoint

logger = logging.getLogger(__name__)

PARAMS, PROVENANCE = "params.yaml", "provenance.json"
_NEEDED = (CONFIG, PARAMS, PROVENANCE, WEIGHTS)  # of a version, to score it and to predict with it
_REFERENCE = re.compile(r"([a-z0-9][a-z0-9-]*)@([a-z0-9][a-z0-9.-]*)")
_VERSION_URI = re.compile(r"(s3://.+?)/models/([a-z0-9-]+)/versions/(\d+\.\d+\.\d+)/?")


def default_cache() -> Path:
    """``$CWBASS_CACHE``, else the user's cache folder: where copies from a store are kept.

    Raises:
        ParamsError: The user has none.
    """
    if own := os.environ.get("CWBASS_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cwbass"
    except RuntimeError as error:  # no HOME, and a user of a container who has no name
        raise ParamsError("this user has no home, so there is no place for copies. Set CWBASS_CACHE to a folder.") from error


def resolve(reference: str, *, store: str | None, cache: Path | None = None) -> Path:
    """A local file or folder for a reference; what comes from a store is checked by its SHA-256.

    Args:
        reference: A path, an ``s3://`` URI, ``name@1.4.0`` or ``name@champion``.
        store: Of the registry, for the last two.
        cache: Where copies are kept; None: :func:`default_cache`.

    Raises:
        ParamsError: A store is needed and not given, or an S3 URI is wrong.
        DataError: There is no such version or alias.
        ServiceError: The store fails, or what it gives is damaged.
    """
    cache = default_cache() if cache is None else cache
    if match := _VERSION_URI.fullmatch(reference):
        opened = open_store(match[1])
        return _fetch_version(opened, find_version(opened, match[2], Number.parse(match[3])), cache)
    if reference.startswith("s3://"):
        return _fetch_checkpoint(reference, cache)
    path = Path(reference)
    if path.exists() or not (match := _REFERENCE.fullmatch(reference)):
        return path
    if store is None:
        raise ParamsError(
            f"{reference} is looked up in a registry, and none is named: give --store, or a params.yaml with registry.store."
        )
    opened, (name, wanted) = open_store(store), match.groups()
    return _fetch_version(opened, named_version(opened, name, wanted), cache)


def is_version(path: Path) -> bool:
    """Whether a path is the folder of a registered version."""
    return (path / MANIFEST).is_file()


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint's file, or the folder of a version, checked by SHA-256.

    Raises:
        CheckpointError: It is missing, damaged or of another kind.
    """
    if not is_version(path):
        return load_checkpoint(path)
    manifest = read_manifest(path / MANIFEST)
    files = {}
    for name in _NEEDED:
        if (path / name).is_file() and file_sha256(path / name) == manifest.digests.get(name):
            files[name] = (path / name).read_bytes()
        else:
            raise CheckpointError(
                f"{path / name} is missing, or not what {MANIFEST} says. Fetch it again, or use another version."
            )
    return _as_checkpoint(files, path)


def describe(path: Path) -> tuple[str, str]:
    """Short name of a checkpoint or version, and the SHA-256 of the checkpoint it is or was made from.

    Raises:
        CheckpointError: It is missing, or does not say what it was made from.
    """
    if not is_version(path):
        try:
            return path.stem, file_sha256(path)
        except FileNotFoundError as error:
            raise no_checkpoint(path) from error
    manifest = read_manifest(path / MANIFEST)
    try:
        made_from = json.loads((path / PROVENANCE).read_bytes())["checkpoint"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path / PROVENANCE} does not say what the version was made from ({error!r}). Register it again."
        ) from error
    return f"{manifest.name}@{manifest.number}", str(made_from)


def _as_checkpoint(files: Mapping[str, bytes], path: Path) -> Checkpoint:
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        config, provenance = json.loads(files[CONFIG]), json.loads(files[PROVENANCE])
        source, weights = provenance["checkpoint"], provenance["weights"]
        state = safetensors.torch.load(files[WEIGHTS])
        checkpoint = Checkpoint(
            method=source["method"],
            method_state={f"{weights}.{key}": value for key, value in state.items()},
            networks=(weights,),
            params=files[PARAMS].decode(),
            spec={
                "class_names": config["classes"],
                "palette": config["palette"],
                "ignore_index": config["ignore_index"],
                "ids": config.get("ids") or {},
                "colors": config.get("colors"),
            },
            split_hash=provenance["split"]["hash"],
            seed=source["seed"],
            step=source["step"],
            epoch=0,
            stage=source["stage"],
            code_version=source["code_version"],
        )
        # What does not fit together is told here, by the version's name, and not in the middle of scoring.
        _ = checkpoint.dataset, checkpoint.network(weights)
    except CwbassError as error:
        raise CheckpointError(f"{path} is no version that can be scored ({error}) Register the model again.") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no version that can be scored ({error!r}). Register the model again.") from error
    return checkpoint


def _fetch_version(store: ObjectStore, version: Version, cache: Path) -> Path:
    """The folder of a version; of one in S3, a copy of what is needed."""
    if isinstance(store, FolderStore):
        return Path(version.uri)
    kept = FolderStore(cache / "versions" / version.manifest_sha256[:32], setting="CWBASS_CACHE")
    for name in _NEEDED:
        if name not in version.digests:
            raise DataError(f"{version.uri} has no {name}, so it cannot be scored. Use another version.")
        path = kept.root / name
        if not (path.is_file() and file_sha256(path) == version.digests[name]):
            kept.put(name, read_file(store, version, name))
    kept.put(MANIFEST, version.manifest)
    logger.info("%s %s from %s", version.name, version.number, version.uri)
    return kept.root


def _fetch_checkpoint(uri: str, cache: Path) -> Path:
    """A copy of a checkpoint in S3, with its SHA-256 beside it where the store has one."""
    from cwbass.storage.s3 import download

    base, _, name = uri.rpartition("/")
    if not PurePosixPath(name).suffix:
        raise ParamsError(
            f"{uri} is neither a checkpoint (s3://bucket/.../best.pt) nor a version (s3://.../models/NAME/versions/1.4.0)."
        )
    expected = _published_digest(base, name)
    for _ in range(2):  # a damaged copy is fetched once more
        path = download(uri, cache / "checkpoints")
        if expected is None:
            logger.warning("%s has no .sha256 beside it: it is used as it came", uri)
            return path
        if file_sha256(path) == expected:
            digest_path(path).write_text(f"{expected}  {path.name}\n", encoding="ascii")
            return path
        path.unlink()
    raise ServiceError(
        f"{uri} is damaged: its SHA-256 is not the one in {name}.sha256 beside it. Restore it, or use another checkpoint."
    )


def _published_digest(base: str, name: str) -> str | None:
    store = open_store(base)
    if not store.exists(f"{name}.sha256"):
        return None
    words = store.get(f"{name}.sha256").decode("ascii", errors="replace").split()
    if not words or not re.fullmatch(r"[0-9a-f]{64}", words[0]):
        raise DataError(f"{base}/{name}.sha256 holds no SHA-256. Write it as `sha256sum {name}` does.")
    return words[0]
