"""Whether a split has enough of what a method learns from; each answer says what is missing, or None."""

from __future__ import annotations

from cwbass.data.manifest import Manifest
from cwbass.methods.base import Retraining


def too_few_classes(split: Manifest) -> str | None:
    """What to say where the labelled images show fewer than two classes."""
    names = split.spec.class_names
    seen = {names[index] for sample in split.labeled for index, count in enumerate(sample.pixels or ()) if count}
    if len(seen) >= 2:
        return None
    return (
        f"the {len(split.labeled)} labelled images show {f'one class only, {next(iter(seen))}' if seen else 'no class'}: there is "
        "nothing to tell apart. Label images of at least two classes, or check data.classes, data.merge and data.ignore_classes."
    )


def no_unlabeled(split: Manifest, method: str) -> str | None:
    """What to say where a method that learns from unlabelled images finds none."""
    if split.unlabeled:
        return None
    return (
        f"method {method} learns from unlabelled images and the split has none. "
        "Lower split.labeled, add images without masks, or use method.name: supervised."
    )


def too_few_to_rank(split: Manifest, retraining: Retraining) -> str | None:
    """What to say where a second stage cannot label some images before others."""
    if (images := len(split.unlabeled)) >= 2:
        return None
    return (
        f"{retraining.key} labels some unlabelled images first and the rest later; the split has {images}. "
        f"Add images without masks, or {retraining.instead}."
    )
