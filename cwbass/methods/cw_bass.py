"""CW-BASS: confidence-weighted, boundary-aware learning (arXiv:2502.15152).

One implementation, two recipes: ``paper`` is the published method to the letter, ``cwbass`` the
same four ideas made to work. docs/method.md sets formulas beside functions and says where and
why the recipes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cwbass.config import EmaDecay, Fraction, NonNegative, Section
from cwbass.data.cutmix import draw_classes, mix_, pixels_of
from cwbass.losses.boundary import Frame, boundary_mask, boundary_mean
from cwbass.losses.confidence import confidence_weighted_mean, pixel_cross_entropy, soft_cross_entropy
from cwbass.methods.base import BuildModel, Method, MethodConfig, Retraining
from cwbass.methods.consistency import draw_cutmix, seen_counts
from cwbass.models.ema import Buffers, decay_of_run, ema_decay_at, make_ema_teacher, update_ema_
from cwbass.models.features import drop_channels, join_features, rows_of
from cwbass.models.norm import frozen_statistics
from cwbass.pixels import highest
from cwbass.pseudo_labels import (
    adaptive_floor,
    confidence_and_label,
    count_by_class,
    decay_factor,
    logistic_threshold,
    probabilities,
    threshold_map,
    thresholds_for_precision,
)
from cwbass.types import LabeledBatch, Progress, Reliability, StepOutput, UnlabeledBatch, sent
from cwbass.world import World


class ThresholdConfig(Section):
    """Which pseudo-labels are kept: those whose confidence exceeds tau."""

    rule: Literal["strict", "logistic", "per_class", "floor", "auto"] = Field(
        description="strict: one constant. logistic: the paper's. per_class: a class's running mean confidence, scaled. "
        "floor: CW-BASS v2's self-adaptive floor. auto: the lowest tau whose kept labels are as precise as target, "
        "per class, measured on the selection slice."
    )
    strict: Fraction = Field(
        default=0.95, description="strict: tau. auto: tau until the selection slice is measured, and always where there is none."
    )
    base: Fraction = Field(default=0.6, description="logistic: supremum of tau.")
    beta: NonNegative = Field(default=0.5, description="logistic: steepness.")
    low: Fraction = Field(default=0.3, description="Lowest tau of every rule but strict.")
    high: Fraction = Field(default=0.95, description="Highest tau of every rule but strict.")
    scale: Fraction = Field(default=0.95, description="per_class and floor: factor on the running confidence.")
    momentum: Fraction = Field(default=0.99, description="per_class and floor: of the running confidences.")
    target: Fraction = Field(default=0.9, description="auto: precision asked of retained labels.")
    prior: NonNegative = Field(default=500.0, description="auto: pixels by which a class's precision is shrunk to that of all.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; the first must not exceed the second")
        return self


class BoundaryConfig(Section):
    """The boundary-aware term."""

    weight: NonNegative = Field(default=0.5, description="Weight of the term; 0 switches it off.")
    frame: Frame = Field(
        default="replicate", description="zero: the image's frame is a boundary, as published. replicate: it is not."
    )
    width: Annotated[int, Field(ge=1)] = Field(default=1, description="Pixels that a boundary reaches on each side.")
    confidence_weighted: bool = Field(default=True, description="Whether boundary pixels are weighted by confidence.")


class DecayConfig(Section):
    """Confidence decay."""

    rule: Literal["none", "constant", "progressive"] = Field(default="progressive", description="See pseudo_labels.decay_factor.")
    factor: Fraction = Field(default=0.9, description="constant: the factor. progressive: its last value.")


class EmaConfig(Section):
    """The teacher."""

    decay: EmaDecay = Field(
        default="auto",
        description="Share of itself that the teacher keeps at a step. auto: min(0.99, 1 - 6 / steps), so that it averages over no more "
        "than a sixth of a short run.",
    )
    ramp: bool = Field(default=True, description="Whether early steps keep less: min(1 - 1/(t+1), decay).")
    buffers: Buffers = Field(default="average", description="Running statistics: averaged like weights, or copied as published.")


class SecondStageConfig(Section):
    """Training anew on labels made offline, reliable images first (see steps.second_stage)."""

    enabled: bool = Field(default=False, description="Whether there is a second stage.")
    steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Steps of each of its two trainings; null: as many as train.steps, warm-up included."
    )
    reliable: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="Share of the unlabelled images labelled first."
    )
    flip: bool = Field(default=True, description="Whether labels are the mean over the image and its mirror image.")


class CwBassTerms(Section):
    """Every term of the method, each with its own switch."""

    views: Literal["same", "strong"] = Field(
        default="strong", description="What the student sees: the teacher's view, or a strong one."
    )
    cutmix: Fraction = Field(default=1.0, description="Probability of CutMix for an unlabelled image; 0 switches it off.")
    cutmix_labeled: Fraction = Field(
        default=0.0, description="Share of the pastes that come from a labelled image, with its mask."
    )
    classmix: Fraction = Field(
        default=1.0,
        description="Probability that an unlabelled image gets objects of a labelled one, cut out along their outlines. A class is taken "
        "with the chance min(1, w / 2), w its weight of train.class_balance: half of them without it, rare ones nearly always with it.",
    )
    feature_drop: Fraction = Field(
        default=0.5,
        lt=1,
        description="Share of feature channels left out when a strong view is decoded a second time, for a loss that counts as much "
        "as the first one's; 0: it is decoded once.",
    )
    labels: Literal["hard", "soft"] = Field(
        default="soft",
        description="hard: the teacher's top class, as published. soft: its probabilities, so that a pixel of which it is not "
        "sure is not called one class for certain.",
    )
    gamma: NonNegative = Field(default=1.0, description="Exponent of the confidence weight; 0 weighs all kept pixels alike.")
    threshold: ThresholdConfig
    boundary: BoundaryConfig = BoundaryConfig()
    decay: DecayConfig = DecayConfig()
    ema: EmaConfig = EmaConfig()
    unsup_weight: NonNegative = Field(default=0.5, description="lambda: weight of the unlabelled loss.")
    ramp_epochs: NonNegative = Field(
        default=0.0, description="Passes over the unlabelled images in which lambda rises from 0, from the stage's start."
    )
    fade: Fraction = Field(
        default=0.33,
        description="Share of the stage, at its end, in which lambda falls to 0, so that true labels have the last word; 0: it stays.",
    )
    divide_by: Literal["kept", "valid"] = Field(
        default="valid",
        description="What the confidence-weighted sum is divided by: kept pixels, as published, or all valid ones.",
    )
    ignore_padding: bool = Field(default=True, description="Whether padding is left out of every statistic and loss.")
    second_stage: SecondStageConfig = SecondStageConfig()
    norm: Literal["joint", "separate", "labeled"] = Field(
        default="joint",
        description="Batch norm. joint: labelled and unlabelled images share a batch. separate: each its own, both remembered, as "
        "published. labeled: each its own, only the labelled ones' statistics are remembered.",
    )


PAPER = CwBassTerms(
    views="same",
    cutmix=0.0,
    cutmix_labeled=0.0,
    classmix=0.0,
    feature_drop=0.0,
    labels="hard",
    gamma=1.0,
    threshold=ThresholdConfig(rule="logistic", base=0.6, beta=0.5, low=0.3, high=0.8),
    boundary=BoundaryConfig(weight=0.5, frame="zero", confidence_weighted=False),
    decay=DecayConfig(rule="constant", factor=0.9),
    ema=EmaConfig(decay=0.999, ramp=False, buffers="copy"),
    unsup_weight=1.0,
    ramp_epochs=5.0,
    fade=0.0,
    divide_by="kept",
    ignore_padding=False,
    norm="separate",
)
CWBASS = CwBassTerms(threshold=ThresholdConfig(rule="floor", scale=0.8), boundary=BoundaryConfig(weight=0.2))


class CwBassConfig(MethodConfig):
    """The method's section: which recipe runs, and the terms of both."""

    name: Literal["cw_bass"] = "cw_bass"
    recipe: Literal["paper", "cwbass"] = Field(default="cwbass", description="Which of the two blocks below is used.")
    paper: CwBassTerms = PAPER
    cwbass: CwBassTerms = CWBASS

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """A block that sets some terms leaves the others at its own recipe's numbers."""
        if not isinstance(values, dict):
            return values
        recipes = {"paper": PAPER, "cwbass": CWBASS}
        given = {key: values[key] for key in recipes if isinstance(values.get(key), dict)}
        return {**values, **{key: _merged(recipes[key].model_dump(), block) for key, block in given.items()}}

    @property
    def terms(self) -> CwBassTerms:
        """The terms of the chosen recipe."""
        return self.paper if self.recipe == "paper" else self.cwbass

    @property
    def retraining(self) -> Retraining | None:
        own, key = self.terms.second_stage, f"method.{self.recipe}.second_stage"
        return Retraining(key, f"set {key}.enabled: false", own.steps, own.reliable, own.flip) if own.enabled else None


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, section by section; unknown keys are kept to be refused."""
    merged = dict(base)
    for key, value in changes.items():
        own = merged.get(key)
        merged[key] = _merged(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return merged


@dataclass(frozen=True, slots=True)
class _Pseudo:
    """What is said of the pixels of a batch."""

    label: Tensor  # [B, H, W] int64
    confidence: Tensor  # [B, H, W] float32
    kept: Tensor  # [B, H, W] bool, takes part in the losses
    valid: Tensor  # [B, H, W] bool, shows an image and not padding
    probs: Tensor | None  # [B, C, H, W] float32; None where labels are hard

    @property
    def maps(self) -> list[Tensor]:
        """One value a pixel each: all but the probabilities."""
        return [self.label, self.confidence, self.kept, self.valid]

    @property
    def parts(self) -> list[Tensor]:
        """All there is, the classes' probabilities last."""
        return self.maps if self.probs is None else [*self.maps, self.probs]


class CwBass(Method):
    """Student and EMA teacher; see :class:`CwBassTerms` for what each term does."""

    config_cls: ClassVar[type[MethodConfig]] = CwBassConfig
    needs_unlabeled: ClassVar[bool] = True
    ships: ClassVar[tuple[str, ...]] = ("student", "teacher")

    thresholds: Tensor  # [K] float, tau of the rule auto
    class_confidence: Tensor  # [K] float, running mean confidence of each predicted class
    mean_confidence: Tensor  # [] float, running mean confidence of all pixels

    def __init__(self, config: CwBassConfig, build_model: BuildModel, **data: Any) -> None:
        super().__init__(config, build_model, **data)
        self.terms = config.terms
        self.student = build_model()
        self.teacher = make_ema_teacher(self.student)
        self.object_chance = (self.class_weight.cpu() / 2).clamp(max=1.0)  # [K], that ClassMix takes a class
        strict = self.terms.threshold.strict
        self.register_buffer("thresholds", torch.full((self.num_classes,), strict))
        self.register_buffer("class_confidence", torch.full((self.num_classes,), 1.0 / self.num_classes))
        self.register_buffer("mean_confidence", torch.tensor(1.0 / self.num_classes))

    def training_step(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch | None, progress: Progress) -> StepOutput:
        assert unlabeled is not None
        terms, world = self.terms, progress.world
        with torch.no_grad():
            pseudo, tau, sums = self._pseudo(unlabeled, world)
            strong = unlabeled.strong if terms.views == "strong" else unlabeled.weak
            if terms.cutmix > 0 or terms.classmix > 0:
                strong, pseudo = strong.clone(), replace(pseudo, valid=pseudo.valid.clone())  # the rest is the batch's own
                self._cutmix_(labeled, strong, pseudo, progress)
                self._classmix_(labeled, strong, pseudo, progress)

        logits = self._student(labeled.image, strong, progress)
        loss_sup = self.supervised_loss(next(logits), labeled.mask, world)
        if terms.norm != "joint":  # where the two are one batch, they are one graph
            loss_sup = progress.settle(loss_sup)

        pixel_loss = self._pixel_loss(next(logits), pseudo)
        if terms.feature_drop > 0:
            pixel_loss = (pixel_loss + self._pixel_loss(next(logits), pseudo)) / 2
        loss_weighted, loss_boundary = self._unsup_losses(pixel_loss, pseudo, progress)
        loss_unsup = loss_weighted + terms.boundary.weight * loss_boundary
        unsup_weight = self.unsup_scale * terms.unsup_weight * self._ramp(progress) * self._fade(progress)
        loss = loss_sup + unsup_weight * loss_unsup
        return StepOutput(
            loss,
            means={
                "loss": loss.detach(),
                "loss_sup": loss_sup.detach(),
                "loss_unsup": loss_unsup.detach(),
                "loss_boundary": loss_boundary.detach(),
                "unsup_weight": torch.full_like(loss, unsup_weight),
                "threshold": tau.detach(),
            },
            sums=sums,
        )

    def pseudo_labels(self, unlabeled: UnlabeledBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """The teacher's confidence and label of each pixel, and for soft labels all its probabilities.

        [B, H, W] float32, [B, H, W] int64, and [B, C, H, W] float32 or None.
        """
        with torch.inference_mode():
            logits = self.teacher(unlabeled.weak)
        if self.terms.labels == "hard":
            return *confidence_and_label(logits), None
        probs = probabilities(logits)
        return *highest(probs), probs

    def after_optimizer_step(self, progress: Progress) -> None:
        ema = self.terms.ema
        decay = ema_decay_at(progress.step, decay=decay_of_run(ema.decay, progress.total_steps), ramp=ema.ramp)
        update_ema_(self.teacher, self.student, decay=decay, buffers=ema.buffers)

    def keeps(self, confidence: Tensor, label: Tensor, threshold: Tensor | None) -> Tensor:
        return confidence > (0.0 if threshold is None else threshold_map(threshold, label))  # above tau, as published

    def calibrate(self, reliability: Reliability | None) -> None:
        rule = self.terms.threshold
        if rule.rule == "auto" and reliability is not None:
            found = thresholds_for_precision(reliability, target=rule.target, low=rule.low, high=rule.high, prior=rule.prior)
            self.thresholds.copy_(found)

    def _pseudo(self, unlabeled: UnlabeledBatch, world: World) -> tuple[_Pseudo, Tensor, dict[str, Tensor]]:
        """What is said of the weak views; tau, [] or [K]; and what is said in all, for the record."""
        valid = unlabeled.valid if self.terms.ignore_padding else torch.ones_like(unlabeled.valid)
        confidence, label, probs = self.pseudo_labels(unlabeled)
        seen = seen_counts(confidence, label, valid, self.num_classes)
        tau = self._threshold(seen["seen"], seen["confidence"], world)
        kept = valid & self.keeps(confidence, label, tau)
        sums = {**seen, "kept": count_by_class(label, kept, self.num_classes)}
        return _Pseudo(label, confidence, kept, valid, probs), tau, sums

    def _unsup_losses(self, pixel_loss: Tensor, pseudo: _Pseudo, progress: Progress) -> tuple[Tensor, Tensor]:
        """The confidence-weighted term and the boundary's, without its weight. [B, H, W] float -> [], []."""
        terms, share = self.terms, progress.world.share
        decay = decay_factor(terms.decay.rule, factor=terms.decay.factor, fraction=progress.stage_fraction)
        weight = pseudo.confidence * decay
        count = share((pseudo.valid if terms.divide_by == "valid" else pseudo.kept).sum())
        loss_weighted = confidence_weighted_mean(pixel_loss, weight, pseudo.kept, gamma=terms.gamma, count=count)
        if terms.boundary.weight == 0:
            return loss_weighted, loss_weighted.new_zeros(())
        seen = pseudo.valid if terms.ignore_padding else None
        edge = boundary_mask(pseudo.label, frame=terms.boundary.frame, width=terms.boundary.width, valid=seen)
        edge_weight = weight if terms.boundary.confidence_weighted else None
        edge = edge & pseudo.kept
        return loss_weighted, boundary_mean(pixel_loss, edge, edge_weight, gamma=terms.gamma, count=share(edge.sum()))

    def _threshold(self, pixels: Tensor, confidence_sums: Tensor, world: World) -> Tensor:
        """tau of this batch, [] for all pixels or [K] by predicted class, from the pixels of each class and their confidence."""
        rule = self.terms.threshold
        if rule.rule == "strict":
            return self.mean_confidence.new_full((), rule.strict)
        if rule.rule == "auto":
            return self.thresholds
        counts, sums = world.total(pixels), world.total(confidence_sums)
        mean = (sums.sum() / counts.sum().clamp(min=1)).to(self.mean_confidence.dtype)
        if rule.rule == "logistic":
            return logistic_threshold(mean, base=rule.base, beta=rule.beta, low=rule.low, high=rule.high)
        class_mean = (sums / counts.clamp(min=1)).to(mean.dtype)
        step = (1 - rule.momentum) * (counts > 0)
        self.class_confidence += step * (class_mean - self.class_confidence)
        self.mean_confidence += (1 - rule.momentum) * (mean - self.mean_confidence)
        if rule.rule == "per_class":
            tau = rule.scale * self.class_confidence
        else:
            tau = adaptive_floor(self.class_confidence, self.mean_confidence, scale=rule.scale)
        return tau.clamp(rule.low, rule.high)

    def _cutmix_(self, labeled: LabeledBatch, strong: Tensor, pseudo: _Pseudo, progress: Progress) -> None:
        """Inside a box, the image and all that is said of it become another image's."""
        if self.terms.cutmix == 0:
            return
        world, generator = progress.world, progress.generator
        batch = len(strong) * world.size
        own = world.part(batch)
        boxes = draw_cutmix(strong, probability=self.terms.cutmix, progress=progress)
        known: dict[int, list[Tensor]] = {}
        if self.terms.cutmix_labeled > 0:
            use = (torch.rand(batch, generator=generator) < self.terms.cutmix_labeled).tolist()[own]
            images, masks = world.gather(labeled.image), world.gather(labeled.mask)
            for row, box in enumerate(boxes):
                if use[row] and box is not None:
                    pick = (own.start + row) % images.shape[0]
                    truth = self._truth(masks[pick][box])
                    if pseudo.probs is not None:
                        probs = pseudo.probs.new_zeros(self.num_classes, *truth.label.shape)
                        truth = replace(truth, probs=probs.scatter_(0, truth.label[None], 1.0))
                    known[row] = [images[pick][..., *box], *truth.parts]
        mix_([strong, *pseudo.parts], boxes, known, world)

    def _classmix_(self, labeled: LabeledBatch, strong: Tensor, pseudo: _Pseudo, progress: Progress) -> None:
        """Objects of a labelled image are pasted, with their true labels, where they lie in it."""
        if self.terms.classmix == 0:
            return
        world, generator = progress.world, progress.generator
        batch = len(strong) * world.size
        own = world.part(batch)
        drawn = draw_classes(batch, self.object_chance, probability=self.terms.classmix, generator=generator)
        images, masks = world.gather(labeled.image), world.gather(labeled.mask)
        for row, classes in enumerate(sent(drawn[own], strong)):
            pick = (own.start + row + 1) % images.shape[0]  # not the one of its box, where there are more
            truth = self._truth(masks[pick])
            where = pixels_of(classes, truth.label, truth.valid)
            for rows, piece in zip([strong, *pseudo.maps], [images[pick], *truth.maps], strict=True):
                rows[row] = torch.where(where, piece, rows[row])
            if pseudo.probs is not None:
                probs = pseudo.probs[row].mul_(~where)
                probs.scatter_add_(0, truth.label[None], where.to(probs.dtype)[None])

    def _truth(self, mask: Tensor) -> _Pseudo:
        """Ground truth as a label that is sure of itself. [H, W] integer -> the same of one image."""
        known = mask != self.ignore_index
        return _Pseudo(mask.where(known, 0).long(), known.float(), known, known, None)

    def _pixel_loss(self, logits: Tensor, pseudo: _Pseudo) -> Tensor:
        """Cross-entropy of each pixel with its label or with the teacher's probabilities. [B, H, W] float."""
        if pseudo.probs is not None:
            return soft_cross_entropy(logits, pseudo.probs)
        target = torch.where(pseudo.kept, pseudo.label, self.ignore_index)
        return pixel_cross_entropy(logits, target, ignore_index=self.ignore_index)

    def _student(self, image: Tensor, strong: Tensor, progress: Progress) -> Iterator[Tensor]:
        """Logits of the labelled images, then of the unlabelled ones, and of these once more with channels left out."""
        labeled, unlabeled = len(image), len(strong)
        again = [unlabeled] if self.terms.feature_drop > 0 else []
        if self.terms.norm == "joint":
            logits = self._decoded_twice(torch.cat((image, strong)), labeled, progress)
            yield from torch.split(logits, [labeled, unlabeled, *again])
            return
        yield self.student(image)
        with frozen_statistics(self.student) if self.terms.norm == "labeled" else nullcontext():
            logits = self._decoded_twice(strong, 0, progress)
        yield from torch.split(logits, [unlabeled, *again])

    def _decoded_twice(self, image: Tensor, first: int, progress: Progress) -> Tensor:
        """Logits of all images, and then of those from ``first`` on with feature channels left out, where that is asked for.

        Source:
            Feature perturbation of UniMatch, arXiv:2208.09910, here of strong views.
        """
        rate, student = self.terms.feature_drop, self.student
        if rate == 0:
            logits: Tensor = student(image)
            return logits
        whole = student.feature_maps(image)
        return student.decode(join_features(whole, drop_channels(rows_of(whole, first), rate=rate, progress=progress)))

    def _ramp(self, progress: Progress) -> float:
        steps = self.terms.ramp_epochs * progress.pass_steps
        return min(1.0, (progress.step - progress.start_step) / steps) if steps else 1.0

    def _fade(self, progress: Progress) -> float:
        fade = self.terms.fade
        return min(1.0, (1 - progress.stage_fraction) / fade) if fade else 1.0
