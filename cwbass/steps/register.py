"""Step ``register``: a model that is good enough becomes a version of the registry."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

import cwbass
from cwbass.config import RegistryConfig, Section
from cwbass.errors import DataError, GateError
from cwbass.gate import check_gate
from cwbass.model_card import model_card
from cwbass.models.base import SegmentationNet
from cwbass.registry import CONFIG, WEIGHTS, find_same, register_version
from cwbass.steps.evaluate import read_metrics
from cwbass.storage import ObjectStore, open_store
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.checkpoint import Checkpoint, file_sha256, load_checkpoint

logger = logging.getLogger(__name__)

METRICS = "metrics.json"


class RegisterParams(Section):
    """What registration depends on."""

    registry: RegistryConfig = RegistryConfig()


@dataclass(frozen=True, slots=True)
class RegisterReport:
    """What became of a model. Without a version, it was refused."""

    name: str
    decision: Literal["registered", "refused"]
    version: str | None = None
    uri: str | None = None  # of the version's folder
    manifest_sha256: str | None = None
    reasons: tuple[str, ...] = ()  # of a refusal

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "reasons": list(self.reasons)}


def register(
    params: RegisterParams,
    *,
    checkpoint: Path,
    metrics: Path,
    report: Path | None,
    out_dir: Path,
    store: ObjectStore | None = None,
    telemetry: Telemetry = SILENT,
) -> RegisterReport:
    """Pass the gate, and write the next version; writes ``registration.json`` either way.

    The same weights with the same scores are one version, however often they are registered.

    Args:
        params: The registry, and its limits.
        checkpoint: File that was scored, or the folder it lies in.
        metrics: Its metrics.json, from ``cwbass eval``.
        report: Its report.html, if there is one.
        out_dir: Where registration.json is written.
        store: Where versions are written; None opens ``registry.store``.
        telemetry: Told what is registered.

    Raises:
        GateError: The scores are too low, or not there.
        DataError: The checkpoint or the scores cannot be read, or do not belong together.
        ServiceError: The store fails.
    """
    registry = params.registry
    scores = read_metrics(metrics)
    path = _scored_file(checkpoint, scores)
    model = load_checkpoint(path)
    checkpoint_sha256 = file_sha256(path)
    _check_together(scores, model, checkpoint_sha256, f"{metrics} and {path}")
    telemetry.describe_run(data_version=model.split_hash, params=model.params, model=model.run_params.model.label)
    if reasons := check_gate(scores, registry):
        _write(RegisterReport(registry.name, "refused", reasons=reasons), out_dir)
        raise GateError(f"{registry.name} is not registered: {'; '.join(reasons)}. Train a better model, or change the limit.")

    store = open_store(registry.store) if store is None else store
    net = model.network(scores["weights"])
    scored: dict[str, bytes | Path] = {WEIGHTS: _weights(net), METRICS: metrics}
    version = find_same(store, registry.name, scored)
    if version is None:
        described = _description(registry.name, model, scores, checkpoint_sha256)
        files = scored | described | ({} if report is None else {"report.html": report})
        version = register_version(store, name=registry.name, files=files)
        telemetry.uploaded(sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values()))
        logger.info("registered %s %s: %s", version.name, version.number, version.uri)
    else:
        logger.info("%s %s is this very model: %s", version.name, version.number, version.uri)
    outcome = RegisterReport(registry.name, "registered", str(version.number), version.uri, version.manifest_sha256)
    _write(outcome, out_dir)
    return outcome


def _scored_file(checkpoint: Path, scores: Mapping[str, Any]) -> Path:
    """The file that was scored; in a folder, the scores say which one it is."""
    if not checkpoint.is_dir():
        return checkpoint
    for path in sorted(checkpoint.glob("*.pt")):
        if file_sha256(path) == scores.get("checkpoint_sha256"):
            return path
    raise DataError(f"{checkpoint} holds no checkpoint of the scores' checkpoint_sha256. Run `cwbass eval` on it again.")


def _check_together(scores: Mapping[str, Any], model: Checkpoint, checkpoint_sha256: str, names: str) -> None:
    """The numbers must be those of the model that is shipped."""
    if scores.get("weights") not in model.networks:
        raise DataError(
            f"{names} do not belong together: weights is {scores.get('weights')!r}, not {' or '.join(model.networks)}."
        )
    pairs = {"split_hash": model.split_hash, "checkpoint_sha256": checkpoint_sha256}
    for key, expected in pairs.items():
        if (key in scores or key == "split_hash") and (found := scores.get(key)) != expected:
            raise DataError(
                f"{names} do not belong together: the scores have {key} {str(found)[:12]}, the checkpoint {expected[:12]}. "
                "Run `cwbass eval` on this checkpoint and its split."
            )


def _weights(net: SegmentationNet) -> bytes:
    """The state of a network; the same tensors give the same bytes."""
    # Clones: safetensors takes no views and no shared memory.
    state = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in net.state_dict().items()}
    return safetensors.torch.save(state, metadata={"format": "pt"})


def _description(name: str, model: Checkpoint, scores: Mapping[str, Any], checkpoint_sha256: str) -> dict[str, bytes | Path]:
    params = model.run_params
    spec = model.dataset
    config = {
        "schema": 1,
        "model": params.model.model_dump(mode="json", exclude={"weights"}),  # where the encoder started is of no use here
        "classes": list(spec.class_names),
        "palette": [list(rgb) for rgb in spec.palette],
        "ignore_index": spec.ignore_index,
        "input": "RGB, [B, 3, H, W], 0 to 255, any size; the network subtracts mean and divides by std itself",
        "protocol": scores.get("protocol"),
    }
    provenance = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_state(),
        "split": {"hash": model.split_hash, **(scores.get("split") or {})},
        "data": params.data.model_dump(mode="json", include={"layout", "root"}),
        "checkpoint": {
            "sha256": checkpoint_sha256,
            "method": model.method,
            "stage": model.stage,
            "step": model.step,
            "seed": model.seed,
            "code_version": model.code_version,
        },
        "weights": scores["weights"],
        "versions": {"cwbass": cwbass.__version__, "python": platform.python_version(), "torch": torch.__version__},
    }
    card = model_card(name, config=config, metrics=scores, provenance=provenance, params=params)
    return {
        CONFIG: _json(config),
        "params.yaml": model.params.encode(),
        "provenance.json": _json(provenance),
        "README.md": card.encode(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit of the working folder, and whether tracked files differ from it; None outside a repository."""
    try:
        revision = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "dirty": bool(changes)}


def _git(*arguments: str) -> str:
    return subprocess.run(("git", *arguments), capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _write(outcome: RegisterReport, out_dir: Path) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / "registration.json"
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(_json(outcome.to_dict()))
    os.replace(partial, path)
