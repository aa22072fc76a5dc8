"""Verb ``export``: the ONNX file alone."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cwbass.config import EvalConfig
from cwbass.export import Parity, export_onnx
from cwbass.files import file_sha256
from cwbass.registry.resolve import open_checkpoint
from cwbass.steps.checkpoints import chosen_file
from cwbass.steps.evaluate import describe_protocol

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how near it comes to the network."""

    path: str
    sha256: str
    weights: str
    protocol: str  # of the scores; the file is the network alone
    parity: Parity

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "parity": self.parity.to_dict()}


def export(*, checkpoint: Path, out: Path, weights: str = "auto") -> ExportReport:
    """Write the network of a checkpoint as ONNX; warns where its scores take more than one pass over the image as it is.

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
    config = model.run_params.eval
    name, protocol = model.network_name(config.weights if weights == "auto" else weights), describe_protocol(config)
    parity = export_onnx(model.network(name), out, class_names=model.dataset.class_names, protocol=protocol)
    if parts := _left_to_callers(config):
        logger.warning(
            "%s is the network alone, and its scores are of %r. Whoever calls it must %s.", out, protocol, "; ".join(parts)
        )
    return ExportReport(str(out), file_sha256(out), name, protocol, parity)


def _left_to_callers(config: EvalConfig) -> list[str]:
    """What ``cwbass predict`` does around the network, in order."""
    parts = {
        f"resize images by {' and by '.join(f'{scale:g}' for scale in config.scales)} before (bilinear, with antialiasing), and "
        "logits back to full size after": config.scales != [1],
        f"cut windows of {config.window} pixels, {config.stride} apart, and blend their logits": config.protocol == "slide",
        "add the mirror image": config.flip,
        "average the probabilities": len(config.scales) > 1 or config.flip,
        f"apply {config.postprocess} to the probabilities": config.postprocess is not None,
    }
    return [part for part, wanted in parts.items() if wanted]
