"""The sections of params.yaml that are shared; a method's own section lives beside the method.

Every section is frozen and strict: an unknown key, a wrong type or a number out of range is an
error that names the dotted key (see ``cwbass.params``). A file may leave out what it does not change;
params.yaml, whose generated images are small, changes some defaults, such as the network and the crop.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
EmaDecay = Literal["auto"] | Fraction  # auto: see models.ema.decay_of_run
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


def in_order(numbers: tuple[float, float]) -> tuple[float, float]:
    """Two numbers that are a range."""
    if numbers[0] > numbers[1]:
        raise ValueError(f"is [{numbers[0]:g}, {numbers[1]:g}]; the first number must not exceed the second")
    return numbers


PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(in_order)]


def _readable(name: str) -> str:
    if not name.strip():
        raise ValueError(f"is {name!r}, which nobody can read in a table; write the name of the class")
    return name


ClassName = Annotated[str, AfterValidator(_readable)]
Options = dict[str, bool | int | float | str | list[int]]
RGB = tuple[Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]]


def keyword_options(entry: Callable[..., Any], options: Options) -> Options:
    """Those of the options that an entry of a registry takes by keyword alone."""
    known = _by_keyword_alone(entry)
    return {name: value for name, value in options.items() if name in known}


def misfits(options: Options, entries: Mapping[str, Callable[..., Any]], given: Collection[str] = ()) -> dict[str, str]:
    """What is wrong with the options of entries of a registry.

    Args:
        options: By name.
        entries: Those that the options are for, by name.
        given: Keywords that the caller of the entries gives, which no option may.

    Returns:
        By option, what to say of one that no entry takes by keyword alone, and of one without which an entry cannot be called.
    """
    parameters = {name: _by_keyword_alone(entry) for name, entry in entries.items()}
    taken = {option for own in parameters.values() for option in own} - set(given)
    foreign = {name: f"is no option of {' or '.join(entries)}" for name in options if name not in taken}
    needed = {
        option: f"is required by {name} and not given"
        for name, own in parameters.items()
        for option, parameter in own.items()
        if parameter.default is parameter.empty and option not in given and option not in options
    }
    return foreign | needed


def _by_keyword_alone(entry: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(entry).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


class Section(BaseModel):
    """A frozen, strict part of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where images and masks lie, and what the mask values mean."""

    layout: str = Field(default="folder", description="How files are laid out below root: a name in data.LAYOUTS.")
    root: str = Field(default="data/shapes", description="Folder of the dataset.")
    classes: list[ClassName] | None = Field(default=None, description="Class names by index; null reads <root>/classes.txt.")
    ignore_index: Annotated[int, Field(ge=0, le=255)] = Field(default=255, description="Mask value that takes no part.")
    colors: dict[ClassName, RGB] | None = Field(
        default=None, description="RGB masks: colour of each class; null reads <root>/labelmap.txt where it exists."
    )
    merge: dict[ClassName, list[str]] = Field(
        default_factory=dict, description="New class -> old classes it takes in; the rest keep their own."
    )
    ignore_classes: list[str] = Field(default_factory=list, description="Classes whose pixels are ignored.")


class SynthesizeConfig(Section):
    """The generated dataset; the section is left out for data of your own."""

    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Seed of the images.")
    labeled: Annotated[int, Field(ge=1)] = Field(default=40, description="Training images with masks.")
    unlabeled: Annotated[int, Field(ge=0)] = Field(default=400, description="Training images without.")
    test: Annotated[int, Field(ge=1)] = Field(default=80, description="Test images.")
    height: Annotated[int, Field(ge=32)] = Field(default=96, description="Pixels.")
    width: Annotated[int, Field(ge=32)] = Field(default=96, description="Pixels.")


class SplitConfig(Section):
    """Which images are labelled, held out for selection, and tested on."""

    labeled: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Labelled images: a count, a share of those with masks, or null for all of them."
    )
    labeled_list: str | None = Field(default=None, description="File of labelled ids (one or two columns); wins over labeled.")
    unlabeled_list: str | None = Field(default=None, description="File of unlabelled ids; null takes all the rest.")
    train_list: str | None = Field(default=None, description="File of ids to train on; null takes the layout's own.")
    test_list: str | None = Field(default=None, description="File of ids to test on; null takes the layout's own.")
    test: Fraction = Field(default=0.2, description="Share carved out for testing where the layout names no test split.")
    selection: Fraction = Field(default=0.15, description="Share of the labelled images held out to choose checkpoints.")
    min_selection: Annotated[int, Field(ge=1)] = Field(
        default=4, description="With fewer images than this in the slice there is none, and the last checkpoint counts."
    )
    group_pattern: str | None = Field(
        default=None, description="Regular expression; ids that match to the same text (group 1, if any) stay together."
    )


class ModelConfig(Section):
    """Architecture and starting weights."""

    arch: str = Field(default="deeplabv3plus", description="An architecture of segmentation-models-pytorch or of models.MODELS.")
    encoder: str = Field(default="resnet50", description="Any encoder of smp, or of timm as tu-<name>.")
    weights: str | None = Field(default=None, description="Encoder weights: null, imagenet, a local file or an s3:// URI.")
    mean: tuple[Fraction, Fraction, Fraction] = Field(default=(0.485, 0.456, 0.406), description="RGB mean, images in [0, 1].")
    std: tuple[Positive, Positive, Positive] = Field(default=(0.229, 0.224, 0.225), description="RGB deviation, likewise.")
    options: Options = Field(
        default_factory=dict, description="Further arguments of the architecture, e.g. encoder_output_stride: 8 of smp's."
    )

    @property
    def label(self) -> str:
        """Architecture and encoder, for people."""
        return f"{self.arch}/{self.encoder}"


class AugmentConfig(Section):
    """Views: one geometry for all, weak photometry for the teacher, strong for the student."""

    crop_size: Annotated[int, Field(ge=8)] = Field(default=96, description="Side of the square training crop, pixels.")
    scale: PositiveRange = Field(default=(0.5, 2.0), description="Range of the random resize factor.")
    hflip: Fraction = Field(default=0.5, description="Probability of a horizontal flip.")
    jitter: Fraction = Field(default=0.8, description="Strong view: probability of colour jitter.")
    brightness: Fraction = Field(default=0.5, description="Strong view: brightness factor in 1 +- this.")
    contrast: Fraction = Field(default=0.5, description="Strong view: contrast factor in 1 +- this.")
    saturation: Fraction = Field(default=0.5, description="Strong view: saturation factor in 1 +- this.")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.25, description="Strong view: hue shift, turns.")
    grayscale: Fraction = Field(default=0.2, description="Strong view: probability of grey.")
    blur: Fraction = Field(default=0.5, description="Strong view: probability of Gaussian blur.")
    blur_sigma: PositiveRange = Field(default=(0.1, 2.0), description="Strong view: blur sigma, pixels.")


class OptimizerConfig(Section):
    """Optimiser and schedule."""

    name: str = Field(default="adamw", description="sgd (momentum 0.9, the paper's), adamw, or another of optimizers.OPTIMIZERS.")
    lr: Positive = Field(default=0.001, description="Learning rate of the decoder at the reference batch size.")
    encoder_lr_factor: NonNegative = Field(default=1.0, description="Encoder's rate is lr times this.")
    weight_decay: NonNegative = Field(default=0.0001, description="Weight decay.")
    decay_norm_and_bias: bool = Field(default=False, description="Whether norms and biases decay too (the paper's code: yes).")
    schedule: str = Field(default="poly", description="How the rate changes: poly, or another of optimizers.SCHEDULES.")
    poly_power: NonNegative = Field(default=0.9, description="poly: lr x (1 - step/steps)^power; 0 is constant.")
    reference_batch: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="lr is scaled by batch/this, and the factor is printed; null does not scale."
    )
    max_grad_norm: Positive | None = Field(default=None, description="Gradient norm is clipped to this; null does not clip.")
    options: Options = Field(default_factory=dict, description="Further arguments of an optimiser or schedule that has some.")


class LossConfig(Section):
    """The loss on labelled images, of every method and the baseline."""

    name: str = Field(default="cross_entropy", description="cross_entropy, or another of losses.LABELED_LOSSES.")
    options: Options = Field(default_factory=dict, description="Further arguments of a loss that has some.")


class OhemConfig(Section):
    """Online hard example mining of labelled pixels; see :class:`cwbass.losses.supervised.HardPixels`."""

    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="A labelled pixel counts whose true class has at most this probability; 1 counts all, published settings for "
        "Cityscapes say 0.7. Holds for every method, the baseline too.",
    )
    min_share: Fraction = Field(
        default=0.1, description="... and in any case this share of a batch's labelled pixels, those of the highest loss."
    )


class GuardConfig(Section):
    """Against collapse of the semi-supervised stage; see :mod:`cwbass.training.collapse`."""

    enabled: bool = Field(default=True, description="Whether the stage is watched.")
    patience: Annotated[int, Field(ge=1)] = Field(default=3, description="Epochs in a row that a sign must last.")
    miou_fall: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.25,
        description="Sign: the selection slice's mIoU is this share of the best below it (0.25: a quarter), and more than luck "
        "with so few images explains (its standard error by Student's t, 95 %).",
    )
    precision_fall: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1,
        description="Sign: precision of kept labels is this far (0.1: ten points) below its best, with no less retention and an mIoU "
        "that has fallen beyond such luck.",
    )
    variety: Fraction = Field(
        default=0.5,
        description="Sign: the teacher names less than this share of the classes it did, and of those that the masks show "
        "(exponentials of the entropy).",
    )
    starved_share: Positive = Field(default=0.01, description="A class has had pseudo-labels if it was this share of an epoch's.")
    starved_epochs: Annotated[int, Field(ge=1)] = Field(
        default=6, description="Sign: a labelled class that had pseudo-labels has none for so many epochs."
    )
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.25, description="At each incident the weight of the unlabelled loss is multiplied by this."
    )


class TrainConfig(Section):
    """The training loop: one schedule over warm-up and semi-supervised training together."""

    steps: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Optimiser steps in all, warm-up included.")
    epochs: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="In place of steps: passes over the unlabelled images."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(default=0, description="The first of these steps, supervised.")
    baseline: bool = Field(default=True, description="Whether the warm-up stage goes on, supervised, for all steps.")
    batch_labeled: Annotated[int, Field(ge=1)] = Field(default=4, description="Labelled crops a step.")
    batch_unlabeled: Annotated[int, Field(ge=1)] = Field(default=4, description="Unlabelled crops a step.")
    accumulate: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="Batches whose gradients make one step. Each is a mean of its own: with few and uneven labelled pixels not quite "
        "what one larger batch is.",
    )
    epoch_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Steps between measurements; null is one pass over the unlabelled images."
    )
    early_stop: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Stop after this many epochs without a better mIoU on the selection slice."
    )
    snapshots: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="States of the networks that are kept, evenly spaced over all steps, so that `cwbass eval` can draw a curve on the "
        "test images. Nothing is chosen by them. A run with a second stage keeps none: its trainings count their own steps.",
    )
    class_balance: Fraction = Field(
        default=0.0,
        description="Labelled pixels of a class count (median share / its share) ** this: 0 is plain cross-entropy, "
        "1 median-frequency balancing. Holds for every method, the baseline too.",
    )
    loss: LossConfig = LossConfig()
    ohem: OhemConfig = OhemConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="auto: bfloat16 where the hardware has it, else float32. float16, with a loss scale, is for GPUs without it.",
    )
    compile: bool = Field(
        default=False,
        description="Whether torch.compile makes kernels for encoder and decoder of each network, teachers too: a minute or more before "
        "the first steps, and then faster ones on GPUs, mostly. What a method does between the two is not compiled. "
        "Needs a C++ compiler; without one it is left out, with a warning.",
    )
    deterministic: bool = Field(
        default=False,
        description="On a GPU: whether torch takes kernels that add in the same order each time, where it has them, and warns where "
        "it has none. Slower, mostly. A CPU is deterministic without.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one.")
    nodes: Annotated[int, Field(ge=1)] = Field(default=1, description="Machines; more than one are a TrainJob of a cluster.")
    processes: Annotated[int, Field(ge=1)] = Field(default=1, description="Processes on each machine, one for each GPU.")
    workers: Annotated[int, Field(ge=0)] = Field(default=0, description="Loader processes for each stream.")
    cache: str | None = Field(default="artifacts/cache", description="Folder of decoded images; null decodes every time.")
    save_minutes: Positive = Field(default=10.0, description="Minutes between two saved states; one is saved every epoch, too.")
    checkpoint_uri: str | None = Field(
        default=None, description="Second place for the states during training: s3://bucket/prefix or a folder; null has none."
    )
    max_nonfinite: Annotated[int, Field(ge=1)] = Field(default=10, description="Stop after this many non-finite steps in a row.")
    probes: Annotated[int, Field(ge=0)] = Field(
        default=4,
        description="Images of which the pseudo-labels are drawn after every epoch, half of them from the selection slice; "
        "0 draws none.",
    )
    guard: GuardConfig = GuardConfig()

    @property
    def labeled_a_step(self) -> int:
        """Labelled crops of an optimiser step, over all processes and accumulated batches."""
        return self.batch_labeled * self.accumulate

    @property
    def unlabeled_a_step(self) -> int:
        """Unlabelled crops likewise."""
        return self.batch_unlabeled * self.accumulate

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, not both and not neither")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, but steps counts the warm-up too and is {self.steps}")
        return self


class EvalConfig(Section):
    """How a model is scored."""

    protocol: Literal["whole", "slide"] = Field(default="whole", description="Whole image, or a sliding window.")
    window: Annotated[int, Field(ge=16)] = Field(default=512, description="slide: side of the window, pixels.")
    stride: Annotated[int, Field(ge=8)] = Field(default=341, description="slide: step of the window, pixels.")
    scales: list[Positive] = Field(default=[1.0], min_length=1, description="Input scales whose probabilities are averaged.")
    flip: bool = Field(default=False, description="Average with the mirrored image.")
    weights: Literal["auto", "student", "teacher"] = Field(
        default="auto", description="auto: the teacher where the checkpoint has one."
    )
    gallery: Annotated[int, Field(ge=0)] = Field(default=6, description="Images shown in the report.")
    postprocess: str | None = Field(
        default=None, description="What is done to an image's probabilities: a name in evaluation.POSTPROCESS; null: nothing."
    )
    postprocess_options: Options = Field(default_factory=dict, description="Arguments of that, where it has some.")

    @model_validator(mode="after")
    def _windows_overlap(self) -> Self:
        if self.protocol == "slide" and self.stride > self.window:
            raise ValueError(f"stride is {self.stride} and window {self.window}: pixels between windows would never be seen")
        return self


class RegistryConfig(Section):
    """Where models go, and how good they must be. Every limit is on the test split."""

    name: str = Field(default="cwbass-shapes", pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", description="Name of the model.")
    store: str = Field(default="artifacts/registry", description="Folder of the registry, or s3://bucket/prefix.")
    min_miou: Fraction = Field(default=0.0, description="Registration is refused below this test mIoU.")
    min_gain: float = Field(default=-1.0, ge=-1, le=1, description="... and below this gain over the supervised baseline.")
    min_champion_gain: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=None, description="... below this gain over the champion's mIoU, on the same split and protocol; null: not asked."
    )
    max_class_drop: Fraction | None = Field(
        default=None, description="... where any class loses more IoU than this against the champion; null: not asked."
    )
    max_ece: Fraction | None = Field(default=None, description="... above this calibration error; null: not asked.")
    max_size_mb: Positive | None = Field(
        default=None, description="... above this size of the weights, in 10^6 bytes; null: not asked."
    )
    promote: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9-]*$",
        description="Alias that a registered model gets: champion, candidate; null: none.",
    )
    license: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*( (AND|OR|WITH) [A-Za-z0-9][A-Za-z0-9.+-]*)*$",
        description="Licence of the weights, as an SPDX expression: Apache-2.0, CC-BY-NC-4.0, LicenseRef-Ours; null: not stated.",
    )
    onnx: Literal["auto"] | bool = Field(
        default="auto",
        description="Whether a version holds model.onnx; auto: where the extra `export` is installed and the network allows it.",
    )
