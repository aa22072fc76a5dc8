"""Arrays as images that travel inside the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cwbass.data.base import DatasetSpec
from cwbass.evaluation.probes import shrink, viridis

MAX_SIDE = 320  # pixels; six gallery rows then stay far below 3 MB
HATCH = ((232, 232, 236), (150, 152, 162))  # stripes where there is no label
FIXED, BROKEN, BOTH_WRONG = (0, 114, 178), (230, 120, 0), (70, 70, 78)  # blue and orange: safe for colour-blind readers


def data_uri(pixels: NDArray[np.uint8], *, photo: bool) -> str:
    """Encode as a ``data:`` URI: JPEG for photographs, PNG where edges must stay exact. [H, W, 3] uint8."""
    buffer = io.BytesIO()
    if photo:
        Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    else:
        Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return file_uri(buffer.getvalue(), "jpeg" if photo else "png")


def file_uri(content: bytes, kind: str) -> str:
    """An image file as a ``data:`` URI; ``kind`` is jpeg or png."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def shrink_image(image: NDArray[Any]) -> NDArray[Any]:
    """Scale so that no side exceeds ``MAX_SIDE``: [H, W, 3] uint8, or a map of real numbers, [H, W] float32."""
    return shrink(image, Image.Resampling.BOX, MAX_SIDE)


def shrink_label(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Likewise for a label map, which may not be interpolated. [H, W] uint8."""
    return shrink(label, longest=MAX_SIDE)


def colorize(label: NDArray[np.uint8], spec: DatasetSpec) -> NDArray[np.uint8]:
    """Paint classes in the palette's colours, and ``ignore_index`` as grey hatching.

    Args:
        label: Class index or ``spec.ignore_index``. [H, W] uint8.
        spec: Palette and ignore value.

    Returns:
        [H, W, 3] uint8.
    """
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: spec.num_classes] = spec.palette
    painted = table[label]  # [H, W, 3]
    ignored = label == spec.ignore_index
    painted[ignored] = _hatching(*label.shape)[ignored]
    return painted


def _hatching(height: int, width: int) -> NDArray[np.uint8]:
    diagonal = np.add.outer(np.arange(height), np.arange(width)) // 3 % 2  # [H, W], stripes of 3 pixels
    painted: NDArray[np.uint8] = np.array(HATCH, dtype=np.uint8)[diagonal]
    return painted


def heat(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour numbers in [0, 1] from dark violet to yellow; NaN is grey. [H, W] -> [H, W, 3] uint8."""
    painted = viridis(np.nan_to_num(values.astype(np.float64)))
    painted[np.isnan(values)] = HATCH[0]
    return painted


def overlay(image: NDArray[np.uint8], mask: NDArray[np.bool_], color: tuple[int, int, int], *, alpha: float) -> NDArray[np.uint8]:
    """Blend ``color`` into ``image`` where ``mask`` holds; ``alpha`` 1 hides the image. [H, W, 3] uint8."""
    blended = image.astype(np.float64)
    blended[mask] = (1 - alpha) * blended[mask] + alpha * np.array(color)
    return blended.round().astype(np.uint8)


def draw_change(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], before: NDArray[np.uint8], after: NDArray[np.uint8], ignore_index: int
) -> NDArray[np.uint8]:
    """Show on the greyed image which pixels ``after`` mends, breaks, or leaves wrong.

    Args:
        image: [H, W, 3] uint8.
        truth: Class index or ``ignore_index``, where nothing is drawn. [H, W] uint8.
        before: Prediction compared with. [H, W] uint8.
        after: Prediction judged. [H, W] uint8.
        ignore_index: Value of ``truth`` that takes no part.

    Returns:
        Blue where mended, orange where broken, dark where both are wrong. [H, W, 3] uint8.
    """
    known = truth != ignore_index
    was_right, is_right = before == truth, after == truth
    grey = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
    pale = overlay(grey, np.ones_like(known), (255, 255, 255), alpha=0.5)
    drawn = overlay(pale, known & ~was_right & ~is_right, BOTH_WRONG, alpha=0.6)
    drawn = overlay(drawn, known & ~was_right & is_right, FIXED, alpha=0.85)
    return overlay(drawn, known & was_right & ~is_right, BROKEN, alpha=0.85)
