"""Pictures of one image, side by side: what it is, what it should be, what each model makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cwbass.data.base import DatasetSpec
from cwbass.errors import DataError
from cwbass.reporting import images


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One image of the gallery. Every map has the image's height and width."""

    title: str  # sample id
    image: NDArray[np.uint8]  # [H, W, 3]
    truth: NDArray[np.uint8] | None  # [H, W] class index, or ignore_index
    prediction: NDArray[np.uint8] | None  # [H, W]
    baseline: NDArray[np.uint8] | None = None  # [H, W] prediction of the baseline
    pseudo_label: NDArray[np.uint8] | None = None  # [H, W], ignore_index where rejected
    confidence: NDArray[np.float32] | None = None  # [H, W] in [0, 1]


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture with its caption."""

    caption: str
    note: str
    alt: str
    uri: str


def draw_panels(item: GalleryItem, spec: DatasetSpec, model: str, baseline: str) -> Iterator[Panel]:
    """The pictures of one gallery row, those that there are.

    Args:
        item: Image and maps.
        spec: Names and colours of the classes.
        model: What the model is called beside a baseline.
        baseline: What that is called.

    Raises:
        DataError: A map does not fit the image or the classes.
    """
    _check(item, spec)
    image = images.shrink_image(item.image)
    yield Panel("Image", "", f"Photograph {item.title}", images.data_uri(image, photo=True))
    caption = "Prediction" if item.baseline is None else model
    labels = {
        "Truth": item.truth,
        caption: item.prediction,
        baseline.capitalize(): item.baseline,
        "Pseudo-label": item.pseudo_label,
    }
    for caption, label in labels.items():
        if label is not None:
            uri = images.data_uri(images.colorize(images.shrink_label(label), spec), photo=False)
            note = "" if label is item.truth else _shares(item.truth, label, spec.ignore_index)
            yield Panel(caption, note, f"{caption} of {item.title}, classes in colours", uri)
    if item.confidence is not None:
        uri = images.data_uri(images.heat(images.shrink_image(item.confidence)), photo=True)
        mean = f"mean {float(item.confidence.mean()) * 100:.1f}%"
        yield Panel("Confidence", mean, f"Confidence on {item.title}, from violet (0%) to yellow (100%)", uri)
    if item.truth is not None and item.prediction is not None and item.baseline is not None:
        truth, before, after = (images.shrink_label(label) for label in (item.truth, item.baseline, item.prediction))
        change = images.draw_change(image, truth, before, after, spec.ignore_index)
        uri = images.data_uri(change, photo=True)
        yield Panel("Change", f"since {baseline}", f"Pixels of {item.title} that {model} mends or breaks", uri)


def _shares(truth: NDArray[np.uint8] | None, label: NDArray[np.uint8], ignore_index: int) -> str:
    """Share of the pixels that have a label, where not all have one, and of those that are right."""
    given = label != ignore_index
    parts = [] if given.all() else [f"{given.mean() * 100:.1f}% kept"]
    if truth is not None and (known := given & (truth != ignore_index)).any():
        parts.append(f"{(truth == label)[known].mean() * 100:.1f}% right")
    return ", ".join(parts)


def _check(item: GalleryItem, spec: DatasetSpec) -> None:
    size = item.image.shape[:2]
    labels = {"truth": item.truth, "prediction": item.prediction, "baseline": item.baseline, "pseudo_label": item.pseudo_label}
    for name, values in {**labels, "confidence": item.confidence}.items():
        if values is not None and values.shape != size:
            raise DataError(
                f"gallery image {item.title!r}: {name} has shape {values.shape}, the image {size}; give it at the image's size."
            )
    for name, label in labels.items():
        stray = [] if label is None else label[(label >= spec.num_classes) & (label != spec.ignore_index)].tolist()
        if stray:
            raise DataError(
                f"gallery image {item.title!r}: {name} holds {stray[0]}, but there are {spec.num_classes} classes and "
                f"ignore_index {spec.ignore_index}; map it with the dataset's own spec."
            )
