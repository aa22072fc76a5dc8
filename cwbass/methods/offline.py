"""CW-BASS on labels that were made before training: the second stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cwbass.methods.base import BuildModel
from cwbass.methods.cw_bass import CwBass, CwBassConfig
from cwbass.types import LabeledBatch, Progress, Reliability, StepOutput, UnlabeledBatch


class OfflineCwBass(CwBass):
    """The loss of :class:`CwBass`, with labels and confidences that come with the batch.

    The network named ``teacher`` teaches nobody here: it is the average of the student's weights,
    for use after training. Three terms are not the recipe's. Padding never takes part, for nobody
    labelled it; and the average always ramps, for it starts from weights that know nothing. Files hold the top
    class alone, so labels are hard.

    Args:
        config: The recipe; its thresholds, weights, views and boundary term hold here too.
        build_model: Makes the network that training starts from.
        data: As of :class:`cwbass.methods.base.Method`.
    """

    def __init__(self, config: CwBassConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        ema = self.terms.ema.model_copy(update={"ramp": True})
        self.terms = self.terms.model_copy(update={"ignore_padding": True, "ema": ema, "labels": "hard"})

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        output = super().training_step(labeled, unlabeled, progress)
        # Whoever reads a threshold measures the network in training at it; the labels are another's.
        return replace(output, means={name: value for name, value in output.means.items() if name != "threshold"})

    def pseudo_labels(self, unlabeled: UnlabeledBatch) -> tuple[Tensor, Tensor, None]:
        """The batch's own confidence and label. [B, H, W] float32 and int64."""
        assert unlabeled.pseudo_label is not None
        assert unlabeled.confidence is not None
        label = unlabeled.pseudo_label.where(unlabeled.valid, 0)  # padding holds ignore_index, which indexes nothing
        return unlabeled.confidence.to(torch.float32) / 255, label.long(), None

    def calibrate(self, reliability: Reliability | None) -> None:
        """Learn nothing: the labels stay the same, however good the network in training becomes."""

    def calibrate_labels(self, reliability: Reliability | None) -> None:
        """Learn from how often the network that made the labels is right on the selection slice."""
        super().calibrate(reliability)
