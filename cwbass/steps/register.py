"""Step ``register``: a model that is good enough becomes a version of the registry."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch

from cwbass.config import RegistryConfig, Section
from cwbass.errors import DataError, GateError, ParamsError
from cwbass.export import export_onnx, missing_packages
from cwbass.files import file_sha256, write_whole
from cwbass.jsonfile import read_metrics_and_bytes
from cwbass.models.base import SegmentationNet
from cwbass.plugins import load_plugins
from cwbass.provenance import dvc_md5, git_state, versions
from cwbass.registry import CONFIG, WEIGHTS, Number, Version, find_same, find_version, read_file, register_version
from cwbass.registry.aliases import CHAMPION, Entry, current, promote
from cwbass.registry.gate import Champion, Check, check_gate, gate_page, reasons
from cwbass.registry.model_card import model_card
from cwbass.registry.resolve import PARAMS, PROVENANCE
from cwbass.steps.report import FLIGHT, REPORT
from cwbass.storage import ObjectStore, open_store
from cwbass.telemetry.base import SILENT, Telemetry
from cwbass.training.checkpoint import Checkpoint, load_checkpoint

logger = logging.getLogger(__name__)

METRICS, CARD, ONNX = "metrics.json", "README.md", "model.onnx"
REGISTRATION, PAGE = "registration.json", "gate.md"


class RegisterParams(Section):
    """What registration depends on."""

    registry: RegistryConfig = RegistryConfig()


@dataclass(frozen=True, slots=True)
class RegisterReport:
    """What became of a model. A version that passes without being written is there already, or has none."""

    name: str
    decision: Literal["registered", "refused", "passed"]  # the last, where it was only asked
    version: str | None = None
    uri: str | None = None  # of the version's folder
    manifest_sha256: str | None = None
    alias: str | None = None  # that points to the version now, by registry.promote
    champion: str | None = None  # version the model was held against
    reasons: tuple[str, ...] = ()  # of a refusal
    page: str = ""  # gate.md: what was asked and seen; empty where it was only asked

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
    origin: Mapping[str, str] | None = None,
    store: ObjectStore | None = None,
    telemetry: Telemetry = SILENT,
    dry_run: bool = False,
) -> RegisterReport:
    """Pass the gate, write the next version, and give it ``registry.promote``.

    Writes ``registration.json`` and ``gate.md`` whether it passes or not. The same weights with the
    same scores are one version, however often they are registered, so a step that was interrupted
    can be run again.

    Args:
        params: The registry, and its limits.
        checkpoint: File that was scored, or the folder it lies in.
        metrics: Its metrics.json, from ``cwbass eval``.
        report: Its report.html, if there is one; a flight.html beside it, to which it links, goes along.
        out_dir: Where registration.json and gate.md are written.
        origin: What else is known of where the model comes from (run, image, version of the data), for provenance.json; empty
            texts are left out.
        store: Where versions are written; None opens ``registry.store``.
        telemetry: Told what is registered.
        dry_run: Pass the gate, and write nothing.

    Raises:
        GateError: The scores are too low, or not there.
        DataError: The checkpoint or the scores cannot be read, or do not belong together.
        ServiceError: The store fails, or the alias was moved in the meantime.
    """
    registry = params.registry
    scores, judged = read_metrics_and_bytes(metrics)  # it may be written over before it is sent
    path = _scored_file(checkpoint, scores)
    model = load_checkpoint(path)
    checkpoint_sha256 = file_sha256(path)
    _check_together(scores, model, checkpoint_sha256, f"{metrics} and {path}")
    telemetry.describe_run(data_version=model.split_hash, params=model.params, model=model.run_params.model.label)
    store = open_store(registry.store) if store is None else store
    net = model.network(scores["weights"])
    weights = _weights(net)
    scored: dict[str, bytes | Path] = {WEIGHTS: weights, METRICS: judged}
    same = find_same(store, registry.name, scored)

    seen = current(store, registry.name, CHAMPION)  # what the gate judges by is what an alias is moved from
    champion = _champion(store, registry.name, seen, same)
    checks = check_gate(scores, registry, size_bytes=len(weights), champion=champion)
    outcome = RegisterReport(
        registry.name,
        "refused",
        champion=None if champion is None else champion.version,
        page="" if dry_run else str(out_dir / PAGE),
    )
    if reasons(checks):
        raise _refused(outcome, checks, champion, out_dir, mend="Train a better model, or change the limit")
    if dry_run:
        return replace(outcome, decision="passed", version=None if same is None else str(same.number))
    version = same
    if version is None:
        try:
            files = scored | _description(registry, model, net, scores, checkpoint_sha256, origin or {})
        except GateError as error:
            checks = (*checks, Check(ONNX, "the network's answers", "others", str(error).rstrip(".")))
            raise _refused(outcome, checks, champion, out_dir, mend="Nothing was written") from error
        files |= _pages(report)
        version = register_version(store, name=registry.name, files=files)
        telemetry.uploaded(sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values()))
        logger.info("registered %s %s: %s", version.name, version.number, version.uri)
    else:
        logger.info("%s %s is this very model: %s", version.name, version.number, version.uri)
    if registry.promote is not None:
        before = seen if registry.promote == CHAMPION else current(store, registry.name, registry.promote)
        with telemetry.registry_operation("promote"):
            promote(store, registry.name, registry.promote, version.number, seen=before, reason="passed the gate")
        logger.info("%s@%s is %s", version.name, registry.promote, version.number)
    outcome = replace(
        outcome,
        decision="registered",
        version=str(version.number),
        uri=version.uri,
        manifest_sha256=version.manifest_sha256,
        alias=registry.promote,
    )
    _write(outcome, checks, champion, out_dir)
    return outcome


def _refused(
    outcome: RegisterReport, checks: tuple[Check, ...], champion: Champion | None, out_dir: Path, *, mend: str
) -> GateError:
    """The error of a refusal, which is written down first where there is a page for it."""
    refused = replace(outcome, reasons=reasons(checks))
    see = ""
    if refused.page:
        _write(refused, checks, champion, out_dir)
        see = f"; see {refused.page}"
    return GateError(f"{refused.name} is not registered: {'; '.join(refused.reasons)}. {mend}{see}.")


def _champion(store: ObjectStore, name: str, seen: Entry | None, same: Version | None) -> Champion | None:
    """The champion's scores; None where there is none, or where it is the model at hand."""
    if seen is None or (same is not None and str(same.number) == seen.version):
        return None
    version = find_version(store, name, Number.parse(seen.version))
    return Champion(seen.version, json.loads(read_file(store, version, METRICS)))


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


def _description(
    registry: RegistryConfig,
    model: Checkpoint,
    net: SegmentationNet,
    scores: Mapping[str, Any],
    checkpoint_sha256: str,
    origin: Mapping[str, str],
) -> dict[str, bytes | Path]:
    """What stands beside weights and scores."""
    params = model.run_params
    spec = model.dataset.to_dict()
    onnx, graph = _onnx(registry, net, spec["class_names"], scores.get("protocol"))
    config = {
        "schema": 1,
        "model": params.model.model_dump(mode="json", exclude={"weights"}),  # where the encoder started is of no use here
        "classes": spec["class_names"],
        "palette": spec["palette"],
        "ignore_index": spec["ignore_index"],
        "ids": spec["ids"],
        "colors": spec["colors"],
        "input": "RGB, [B, 3, H, W], 0 to 255, any size; the network subtracts mean and divides by std itself",
        "protocol": scores.get("protocol"),
        "onnx": onnx,
    }
    provenance = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "split": {"hash": model.split_hash, **(scores.get("split") or {})},
        "data": {**params.data.model_dump(mode="json", include={"layout", "root"}), "dvc_md5": dvc_md5(params.data.root)},
        "checkpoint": {
            "sha256": checkpoint_sha256,
            "method": model.method,
            "stage": model.stage,
            "step": model.step,
            "seed": model.seed,
            "code_version": model.code_version,
        },
        "weights": scores["weights"],
        "origin": {name: text for name, text in origin.items() if text},
        "versions": versions(),
        "plugins": {plugin.name: plugin.sha256 for plugin in load_plugins()},
    }
    card = model_card(
        registry.name, config=config, metrics=scores, provenance=provenance, params=params, license=registry.license
    )
    described: dict[str, bytes | Path] = {
        CONFIG: _json(config),
        PARAMS: model.params.encode(),
        PROVENANCE: _json(provenance),
        CARD: card.encode(),
    }
    return described if graph is None else described | {ONNX: graph}


def _pages(report: Path | None) -> dict[str, bytes | Path]:
    if report is None:
        return {}
    flight = report.parent / FLIGHT
    return {REPORT: report, FLIGHT: flight} if flight.is_file() else {REPORT: report}


def _onnx(
    registry: RegistryConfig, net: SegmentationNet, class_names: list[str], protocol: str | None
) -> tuple[dict[str, Any], bytes | None]:
    """What config.json says of the ONNX file, and the file; or why there is none."""
    if registry.onnx is False:
        return {"absent": "registry.onnx is false"}, None
    absent = f"{', '.join(missing)} not installed (cwbass[export])" if (missing := missing_packages()) else None
    if absent is None or registry.onnx is True:
        try:
            return _export(net, class_names, protocol)
        except ParamsError as error:  # not every network can be; one that can, and answers otherwise, is a GateError
            if registry.onnx is True:
                raise
            absent = str(error)
    logger.warning("the version gets no %s: %s", ONNX, absent)
    return {"absent": absent}, None


def _export(net: SegmentationNet, class_names: list[str], protocol: str | None) -> tuple[dict[str, Any], bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ONNX
        parity = export_onnx(net, path, class_names=class_names, protocol=protocol)
        graph = path.read_bytes()
    return {"file": ONNX, "input": "image, uint8 [B, 3, H, W]", "output": "logits, float32", "parity": parity.to_dict()}, graph


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def _write(outcome: RegisterReport, checks: tuple[Check, ...], champion: Champion | None, out_dir: Path) -> None:
    said = "It is not registered." if outcome.version is None else f"It is version {outcome.version} ({outcome.uri})."
    promoted = "" if outcome.alias is None else f" The alias {outcome.alias} points to it."
    page = gate_page(outcome.name, checks, outcome=said + promoted, champion=champion)
    write_whole(out_dir / PAGE, page.encode())
    write_whole(out_dir / REGISTRATION, _json(outcome.to_dict()))
