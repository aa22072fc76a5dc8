"""Verb ``init``: parameters for a dataset, from what can be seen of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from cwbass.config import DataConfig, SplitConfig
from cwbass.data import list_dataset
from cwbass.data.listing import guess_layout, unread_masks
from cwbass.data.sizes import median_size
from cwbass.data.splits import selection_size
from cwbass.errors import DataError, ParamsError
from cwbass.files import write_whole
from cwbass.params import Params, load_text

WEIGHTS = "artifacts/weights/tf_efficientnet_lite0.safetensors"  # of `make run` and `make smoke`
MULTIPLE = 32  # crops are multiples of it, as encoders halve five times
SHORT_CPU, SHORT_GPU = 144, 1024  # pixels of the short side that the network works at, at most
LARGEST_CROP = 512  # pixels
FRAMES = r"^(.*?)\d+$"  # ids of frames: what comes before the number is the sequence


@dataclass(frozen=True, slots=True)
class Seen:
    """What is to be seen of a dataset without opening more than some headers."""

    root: str
    layout: str
    classes: int
    masks: int  # training images that have one
    unlabeled: int  # training images that have none
    test: int  # images that the layout tests on
    height: int  # of the images, median
    width: int
    sequences: int  # that the names of images with masks tell apart as those of frames; 0: they tell of none


@dataclass(frozen=True, slots=True)
class InitReport:
    """Where the parameters were written, and what they follow from."""

    params: str
    device: str
    seen: Seen

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "next": f"cwbass check --params {self.params}"}


def init(folder: Path, *, out: Path, root: str | None = None, device: str = "auto", overwrite: bool = False) -> InitReport:
    """Write a file of parameters that fits a dataset: its layout, sizes of images and crops, network, budget.

    Args:
        folder: Of the dataset; its layout is told from the names of the folders in it.
        out: The file.
        root: The ``data.root`` of the file, where the folder is a copy of what lies there; None: the folder.
        device: What the run is planned for: cpu, cuda, which need not be here, or auto: a GPU where there is one.
        overwrite: Write over a file that is there.

    Raises:
        DataError: The folder has no layout that we know, its files do not fit together, or no image has a mask.
        ParamsError: The file is there already.
    """
    if out.exists() and not overwrite:
        raise ParamsError(f"{out} is there already. Give --overwrite to write over it, or another name with --out.")
    seen = look(folder)
    seen = seen if root is None else replace(seen, root=root)
    gpu = torch.cuda.is_available() if device == "auto" else device == "cuda"
    text = proposal(seen, gpu=gpu, weights=WEIGHTS if Path(WEIGHTS).is_file() else "imagenet")
    load_text(text, str(out), Params)
    write_whole(out, text.encode())
    return InitReport(str(out), "cuda" if gpu else "cpu", seen)


def look(root: Path) -> Seen:
    """What is to be seen of the dataset in a folder.

    Raises:
        DataError: As :func:`init` has it.
    """
    layout = guess_layout(root)
    if layout is None:
        raise DataError(
            f"{root}: {_nothing(root)} Put images into images/ and masks into masks/ there; docs/data.md has more layouts."
        )
    listing = list_dataset(DataConfig(layout=layout, root=str(root)), SplitConfig(), root)
    masks = sum(sample.mask is not None for sample in listing.train)
    if not masks:
        raise DataError(
            f"{root}: none of {len(listing.train)} training images has a mask. Label some, or look at their names."
            f"{unread_masks(root, listing)}"
        )
    height, width = median_size(listing.train, root)
    return Seen(
        root=str(root),
        layout=layout,
        classes=listing.spec.num_classes,
        masks=masks,
        unlabeled=len(listing.train) - masks,
        test=len(listing.test),
        height=height,
        width=width,
        sequences=_sequences(sample.id for sample in listing.train if sample.mask is not None),
    )


def proposal(seen: Seen, *, gpu: bool, weights: str = "imagenet") -> str:
    """A params.yaml for a dataset, with the reasons of its numbers.

    The network sees images at a size that the hardware bears; a crop shows two thirds of the short side, or more on a GPU, so that
    objects are seen whole. On a CPU these are the settings of configs/camvid.yaml, which were measured, with a learning rate of
    0.002 and more steps; for a GPU the field's usual ones, which were not.

    Args:
        seen: Of :func:`look`.
        gpu: Whether it will train on one.
        weights: ``model.weights`` of the small network, for a CPU.
    """
    short = min(seen.height, seen.width)
    size = min(1.0, float(f"{(SHORT_GPU if gpu else SHORT_CPU) / short:.2g}"))
    crop = _crop(size * short * (0.85 if gpu else 0.67))
    low, high = (0.5, 2.0) if gpu else (0.67, 1.5)
    pixels = f"{seen.width} x {seen.height} pixels"
    sections = [
        [
            f"# Proposed by `cwbass init` for {seen.root} and a {'GPU' if gpu else 'CPU'}: {seen.masks} training images "
            f"with masks, {seen.unlabeled} without,",
            f"# {seen.classes} classes, {pixels} (median). All other keys: `cwbass config show --origin`.",
            "seed: 0",
        ],
        [
            "data:",
            f"  layout: {seen.layout}",
            "  " + yaml.safe_dump({"root": seen.root}, width=math.inf, allow_unicode=True).strip(),
        ],
        _split(seen),
        [
            "augment:",
            _line(
                f"crop_size: {crop}",
                f"of images of {pixels}" + (f", which the network sees at {size:g} of that" if size < 1 else ""),
            ),
            _line(f"scale: [{low * size:.2g}, {high * size:.2g}]"),
            *(_mild() if size < 1 and not gpu else []),
        ],
        _model(gpu, weights),
        ["warmup:", _line("ema_decay: auto", "of the averaged weights: min(0.99, 1 - 6 / steps)")],
        _method(seen),
        _training(gpu),
        [
            "eval:",
            _line("protocol: whole", "or slide, for images too large for the memory"),
            _line(f"scales: [{size:g}]", "the size that it was trained at; scores are counted at full size" if size < 1 else ""),
        ],
        [
            "registry:",
            _line(f"name: {_name(seen.root)}"),
            _line("min_miou: 0.0", "registration is refused below this test mIoU: say what yours must have"),
            _line("min_gain: -1.0", "and below this gain over the supervised baseline: 0.0 asks to be no worse"),
        ],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _line(text: str, comment: str = "") -> str:
    return f"  {text:<27} # {comment}" if comment else f"  {text}"


def _split(seen: Seen) -> list[str]:
    config = SplitConfig()
    labeled = seen.masks if seen.test else seen.masks - round(config.test * seen.masks)
    selection = "share of the labelled images held out to choose checkpoints and measure pseudo-labels"
    if not selection_size(labeled, config):
        least = f"fewer than split.min_selection ({config.min_selection})"
        selection = f"holds out none: of {labeled} labelled images this gives {least}. The last checkpoint counts"
    lines = [
        "split:",
        _line("labeled: null", "all images with masks; or a count, a share, or labeled_list: FILE"),
        _line(f"selection: {config.selection}", selection),
    ]
    if not seen.test:
        lines.append(_line(f"test: {config.test}", "no list names test images: this share of those with masks"))
    if seen.sequences:
        names = f"names look like frames of {seen.sequences} sequences: if they are, keep neighbours together"
        lines.append(_line(f"# group_pattern: '{FRAMES}'", names))
    return lines


def _mild() -> list[str]:
    """Strong views for images that were made small: a pole is a pixel wide then, and a blur erases it."""
    return [
        _line("brightness: 0.3", "milder strong views than the defaults: details are small here"),
        *map(_line, ("contrast: 0.3", "saturation: 0.3", "hue: 0.05", "grayscale: 0.1", "blur: 0.2", "blur_sigma: [0.1, 0.8]")),
    ]


def _model(gpu: bool, weights: str) -> list[str]:
    if gpu:
        return [
            "model:",
            *map(_line, ("arch: deeplabv3plus", "encoder: resnet50")),
            _line("weights: imagenet", "or a file, or s3://..."),
        ]
    return [
        "model:",
        _line("arch: unet"),
        _line("encoder: tu-tf_efficientnet_lite0", "small enough for a CPU"),
        _line(f"weights: {weights}"),
        _line("mean: [0.498, 0.498, 0.498]"),
        _line("std: [0.502, 0.502, 0.502]"),
        _line("options: {decoder_channels: [64, 48, 32, 24, 16]}"),
    ]


def _method(seen: Seen) -> list[str]:
    if seen.unlabeled:
        return ["method:", _line("name: cw_bass"), _line("recipe: cwbass")]
    hint = "no image is unlabelled. Add some (unlabeled/), or set split.labeled below 1, and take cw_bass"
    return ["method:", _line("name: supervised", hint)]


def _training(gpu: bool) -> list[str]:
    batch, steps, warmup, epoch, rate = (8, 20000, 5000, 500, 0.001) if gpu else (4, 5000, 1500, 100, 0.002)
    return [
        "train:",
        _line(f"steps: {steps}", "optimiser steps in all, the warm-up's among them; unlabelled images pay in long runs"),
        _line(f"warmup_steps: {warmup}"),
        _line(f"batch_labeled: {batch}", "where memory is short: half of both, and accumulate: 2"),
        _line(f"batch_unlabeled: {batch}"),
        _line(f"epoch_steps: {epoch}"),
        _line("class_balance: 0.5", "rare classes count more: (median share / own share) ** this"),
        _line(f"precision: {'auto' if gpu else 'float32'}"),
        *([_line("workers: 4", "loader processes for each of the two streams")] if gpu else []),
        _line(f"optimizer: {{name: adamw, lr: {rate}, encoder_lr_factor: 0.3}}"),
    ]


def _crop(pixels: float) -> int:
    return min(LARGEST_CROP, max(1, round(pixels / MULTIPLE)) * MULTIPLE)


def _name(root: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", Path(root).resolve().name.lower()).strip("-")
    return f"cwbass-{slug or 'model'}"


def _sequences(ids: Iterable[str]) -> int:
    """Sequences whose frames have these ids; 0 where they do not look like frames of several."""
    found = [re.match(FRAMES, id) for id in ids]
    names = {match[1] for match in found if match}
    return len(names) if all(found) and 2 <= len(names) <= len(found) // 4 else 0


def _nothing(root: Path) -> str:
    if not root.is_dir():
        return "no such folder."
    return "none of images/, JPEGImages/ and leftImg8bit/ is there."
