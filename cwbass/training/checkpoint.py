"""A checkpoint that describes itself: weights, optimiser, counters, and what they belong to.

Tensors and plain values only, so that it loads with ``weights_only=True``. It is written beside
its place, flushed, and moved there, with a SHA-256 in a file of its own; a torn file is an
error that says so, never a model with half its weights.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cwbass
from cwbass.config import ModelConfig
from cwbass.data.base import DatasetSpec
from cwbass.errors import CheckpointError, one_line
from cwbass.files import digest_path, file_sha256, write_digest, write_whole
from cwbass.models import build_model
from cwbass.models.base import SegmentationNet
from cwbass.params import Params, load_text

SCHEMA = 1
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("method", "params", "split_hash", "stage", "code_version"), str),
    **dict.fromkeys(("method_state", "spec", "optimizer", "best", "loss_scale"), dict),
    **dict.fromkeys(("seed", "step", "epoch"), int),
    "networks": (tuple, list),
    "history": list,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything needed to score, ship or continue a run."""

    method: str  # name in METHODS
    method_state: Mapping[str, Tensor] = field(repr=False)  # student, teacher and thresholds
    networks: tuple[str, ...]  # names of the networks in method_state, preferred last
    params: str = field(repr=False)  # resolved params.yaml
    spec: Mapping[str, Any] = field(repr=False)  # DatasetSpec.to_dict()
    split_hash: str
    seed: int
    step: int  # optimiser steps taken, warm-up included
    epoch: int  # epochs of the stage that are done
    stage: str  # warmup, baseline, train, or a retraining of the second stage
    optimizer: Mapping[str, Any] = field(default_factory=dict, repr=False)
    best: Mapping[str, Any] = field(default_factory=dict)  # miou on the selection slice, step: of the checkpoint that counts
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)  # rows of history.jsonl
    loss_scale: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of float16; empty in other precisions
    code_version: str = cwbass.__version__
    schema: int = SCHEMA

    @property
    def dataset(self) -> DatasetSpec:
        """Classes, palette and mask values."""
        return DatasetSpec.from_dict(self.spec)

    @property
    def run_params(self) -> Params:
        """The parameters of the run."""
        return load_text(self.params, "the checkpoint's params", Params)

    def check_split(self, split_hash: str, path: Path | None, manifest: Path, images: str) -> None:
        """Refuse to measure on images that may have been trained on.

        Args:
            split_hash: Of the split that they are of.
            path: Of this checkpoint, for the error.
            manifest: Of that split, likewise.
            images: What is measured on: its test images, or its selection slice.

        Raises:
            CheckpointError: It was trained on another split.
        """
        if self.split_hash != split_hash:
            raise CheckpointError(
                f"{path} was trained on split {self.split_hash[:12]}, {manifest} is {split_hash[:12]}: its {images} may have been "
                "trained on. Pass the manifest it was trained with."
            )

    def network_name(self, wanted: str) -> str:
        """``student`` or ``teacher``; ``auto`` is the one the method prefers.

        Raises:
            CheckpointError: The checkpoint has no such network.
        """
        if wanted == "auto":
            return self.networks[-1]
        if wanted not in self.networks:
            raise CheckpointError(
                f"the checkpoint has no {wanted}; its networks are {', '.join(self.networks)}, or auto, the one that its method prefers."
            )
        return wanted

    def network(self, wanted: str = "auto") -> SegmentationNet:
        """A network with its weights, in eval mode, on the CPU."""
        prefix = f"{self.network_name(wanted)}."
        state = {name.removeprefix(prefix): value for name, value in self.method_state.items() if name.startswith(prefix)}
        return build_with_weights(self.run_params.model, self.dataset.class_names, state)


def build_with_weights(
    config: ModelConfig, class_names: Sequence[str], state: Mapping[str, Tensor], name: str = "the checkpoint"
) -> SegmentationNet:
    """A network of ``config`` that holds exactly ``state``, in eval mode.

    Args:
        config: Architecture and encoder.
        class_names: Of the dataset that it was trained on. [C].
        state: Of the network.
        name: Where it comes from, for the error.

    Raises:
        CheckpointError: A key is missing, foreign or of another shape; the message names some.
    """
    net = build_model(config, class_names)
    try:
        net.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        problem = one_line(error, 600).rstrip(".")
        raise CheckpointError(
            f"the weights of {name} do not fit {config.arch} with {config.encoder}: {problem}. Use a file of this very model."
        ) from error
    return net.eval()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> str:
    """Write atomically, with ``<path>.sha256`` beside it; equal checkpoints give equal bytes.

    Returns:
        SHA-256 of the file, hex.

    Raises:
        ServiceError: The disk is full or refuses; what was there before is whole.
    """
    # The old digest goes first: a crash in between leaves a file without one, never with a wrong one.
    digest = write_whole(path, serialize(fields_of(checkpoint)), before=lambda: digest_path(path).unlink(missing_ok=True))
    write_digest(path, digest)
    return digest


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a dataclass, as they are."""
    return {item.name: getattr(record, item.name) for item in fields(record)}


def serialize(content: Mapping[str, Any]) -> memoryview:
    """What ``torch.save`` would write: a copy, so that training may go on while it is written.

    A pickle names an object by its place where it meets it again. Whether two equal strings are one object depends on
    where they came from, so all become one here: a run that read half its history from a file gives the same bytes.
    """
    buffer = io.BytesIO()
    torch.save(_canonical(content), buffer)
    return buffer.getbuffer()


def _canonical(value: Any) -> Any:
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return tuple(_canonical(item) for item in value) if isinstance(value, tuple) else value


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read and verify a file of :func:`save_checkpoint`.

    Raises:
        CheckpointError: The file is missing, torn, not one of ours, or of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise no_checkpoint(path)
    expected = _expected_digest(path)
    if expected is not None and (found := file_sha256(path)) != expected:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {found[:12]}, {digest_path(path).name} says {expected[:12]}. Use another checkpoint."
        )
    return as_checkpoint(load_plain(path), path)


def no_checkpoint(path: Path) -> CheckpointError:
    """The error of a checkpoint that is not there."""
    return CheckpointError(
        f"{path}: no such checkpoint. `cwbass train` writes last.pt and, with a selection slice, best.pt; `cwbass warmup` warmup.pt."
    )


def as_checkpoint(content: Any, path: Path) -> Checkpoint:
    """What a file holds, if it is the fields of a checkpoint.

    Raises:
        CheckpointError: It is something else, or of another schema.
    """
    if not isinstance(content, dict) or "schema" not in content:
        raise CheckpointError(f"{path} is no checkpoint of cwbass. Pass a file that `cwbass train` or `cwbass warmup` wrote.")
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {content['schema']!r} (written by cwbass {content.get('code_version')}); "
            f"this cwbass {cwbass.__version__} reads {SCHEMA}. Train again, or use that version."
        )
    content.setdefault("loss_scale", {})  # files written before there was one are whole
    content.pop("rng", None)  # written once, and read by nobody: a step's randomness follows from seed and step
    names = {item.name for item in fields(Checkpoint)}
    if wrong := sorted(map(str, names ^ content.keys())):
        raise CheckpointError(f"{path} is no whole checkpoint: {', '.join(wrong)} missing or unknown. Use another file.")
    if broken := [name for name, kind in _KINDS.items() if not isinstance(content[name], kind)]:
        seen = ", ".join(f"{name} is a {type(content[name]).__name__}" for name in broken)
        raise CheckpointError(f"{path} is no checkpoint: {seen}. Use another file.")
    state, networks = content["method_state"], content["networks"]
    named = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    if not named or not networks or not all(isinstance(name, str) for name in networks):
        raise CheckpointError(f"{path} is no checkpoint: method_state or networks hold something else. Use another file.")
    return Checkpoint(**content)


def load_plain(path: Path) -> Any:
    """Tensors and plain values of a file of ``torch.save``, on the CPU; no code in it runs.

    Raises:
        CheckpointError: It is torn, of another kind, or holds more than that.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise CheckpointError(
            f"{path} is no checkpoint of cwbass, or is torn ({one_line(error, 200)}). Use another file."
        ) from error


def _expected_digest(path: Path) -> str | None:
    try:
        return digest_path(path).read_text(encoding="ascii").split()[0]
    except (FileNotFoundError, IndexError, UnicodeDecodeError):
        return None
