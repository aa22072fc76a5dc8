"""Which labels of a network may teach, and how much each counts: the rules of peers, with their running state."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cwbass.config import Fraction, Positive, Section
from cwbass.methods.consistency import Targets
from cwbass.pseudo_labels import confidence_and_label, probabilities, self_adaptive_thresholds, soft_weight, threshold_map
from cwbass.world import World

Momentum = Annotated[float, Field(ge=0, lt=1)]


class SelectionConfig(Section):
    """Which pseudo-labels count, and how much."""

    rule: Literal["strict", "freematch", "softmatch"] = Field(
        default="strict",
        description="strict: those of confidence tau or more. freematch: of a self-adaptive tau for each class. softmatch: all, "
        "less below the running mean of the confidence.",
    )
    tau: Fraction = Field(default=0.95, description="strict: the threshold; 0 keeps all, as published for Cityscapes.")
    momentum: Momentum = Field(default=0.999, description="freematch and softmatch: of the running means, as published.")
    spread: Positive = Field(default=1.0, description="softmatch: factor on the running deviation.")


class Selection(nn.Module):
    """A rule with its running means; what it keeps of training stands in its buffers.

    Args:
        config: The rule.
        num_classes: K.

    Source:
        strict: FixMatch, arXiv:2001.07685. freematch: arXiv:2205.07246, equations 5 to 8. softmatch: arXiv:2301.10921,
        equations 6 and 7. Both take all valid pixels of the whole batch where they took images.
    """

    mean: Tensor  # [] float, running mean of the confidence
    variance: Tensor  # [] float, running variance of the confidence
    class_probs: Tensor  # [K] float, running mean of the probabilities

    def __init__(self, config: SelectionConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(1.0 / num_classes))
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("class_probs", torch.full((num_classes,), 1.0 / num_classes))

    @torch.no_grad()
    def forward(self, logits: Tensor, valid: Tensor, world: World) -> Targets:
        """What is said of the pixels of a weak view.

        Args:
            logits: [B, C, H, W] float.
            valid: Pixels that show an image. [B, H, W] bool.
            world: Processes that hold the rest of the batch.
        """
        confidence, label = confidence_and_label(logits)
        if self.config.rule != "strict":
            self._remember(logits, confidence, valid, world)
        if self.config.rule == "softmatch":
            weight = soft_weight(confidence, self.mean, self.variance, spread=self.config.spread)
        else:
            tau = self.threshold()
            assert tau is not None
            weight = (confidence >= threshold_map(tau, label)).to(confidence.dtype)
        return Targets(label, confidence, weight * valid, valid)

    def threshold(self) -> Tensor | None:
        """tau, [] or [K]; None where none is rejected."""
        if self.config.rule == "strict":
            return self.mean.new_full((), self.config.tau)
        return self_adaptive_thresholds(self.class_probs, self.mean) if self.config.rule == "freematch" else None

    def _remember(self, logits: Tensor, confidence: Tensor, valid: Tensor, world: World) -> None:
        count = world.total(valid.sum())
        pixels = count.clamp(min=1).double()
        mean = world.total((confidence * valid).double().sum()) / pixels
        variance = world.total(((confidence.double() - mean).square() * valid).sum()) / (pixels - 1).clamp(min=1)
        probs = world.total((probabilities(logits) * valid[:, None]).double().sum((0, 2, 3))) / pixels
        step = (1 - self.config.momentum) * (count > 0)  # a batch of padding alone says nothing
        for own, seen in ((self.mean, mean), (self.variance, variance), (self.class_probs, probs)):
            own += step * (seen.to(own.dtype) - own)
