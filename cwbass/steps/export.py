"""Verb ``export``: the ONNX file alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cwbass.export import Parity, export_onnx
from cwbass.files import file_sha256
from cwbass.resolve import open_checkpoint
from cwbass.steps.checkpoints import chosen_file


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how near it comes to the network."""

    path: str
    sha256: str
    weights: str
    parity: Parity

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "parity": self.parity.to_dict()}


def export(*, checkpoint: Path, out: Path, weights: str = "auto") -> ExportReport:
    """Write the network of a checkpoint as ONNX.

    Args:
        checkpoint: A file, a training's folder, whose checkpoint that counts is taken, or the folder of a registered version.
        out: The file to write.
        weights: student or teacher; auto: the one that is scored, by ``eval.weights`` of the checkpoint.

    Raises:
        ParamsError: The extra ``export`` is missing, or the network cannot be exported.
        CheckpointError: The checkpoint cannot be used.
        GateError: The file's answers differ from the network's.
    """
    model = open_checkpoint(chosen_file(checkpoint))
    name = model.network_name(model.run_params.eval.weights if weights == "auto" else weights)
    parity = export_onnx(model.network(name), out, class_names=model.dataset.class_names)
    return ExportReport(str(out), file_sha256(out), name, parity)
