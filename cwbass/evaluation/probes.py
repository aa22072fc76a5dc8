"""A few images, and what a network says of them as it learns: pictures in a zip that any viewer opens.

No picture has a side of more than ``MAX_SIDE`` pixels, and no stage more than ``MAX_FRAMES`` moments, so the file is bounded.
Pictures are palette PNGs whose values are the data: classes (their number stands for no label), confidence in ``LEVELS``, and
``ZONES``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cwbass.data.base import DatasetSpec, Sample, spread
from cwbass.data.label_maps import with_palette
from cwbass.errors import DataError

MAX_SIDE = 256  # pixels
MAX_FRAMES = 40
SCHEMA = 1
INDEX = "index.json"
PICTURES = ("label", "kept", "confidence", "zones")  # of a frame
# Values of the picture of zones, in order; blue and orange are safe for colour-blind readers.
ZONES = {
    "inside, kept": (214, 222, 232),
    "inside, dropped": (150, 157, 170),
    "near a boundary, kept": (0, 114, 178),
    "near a boundary, dropped": (230, 120, 0),
}
LEVELS = 64  # of confidence, from 0 to 1: fewer bytes than 256, and no eye tells them apart
# Anchors of viridis at 0, 1/8, ... 1: equal steps of lightness, safe for colour-blind readers and in grey print.
VIRIDIS = np.array(
    [(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
     (170, 220, 50), (253, 231, 37)], dtype=np.float64
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Probe:
    """An image that is looked at again and again."""

    id: str
    role: str  # selection or unlabelled
    image: bytes  # JPEG
    truth: bytes | None  # PNG of classes, see-through where ignored; None where there is no mask


@dataclass(frozen=True, slots=True)
class Frame:
    """What a network says of a probe at one moment."""

    pictures: dict[str, bytes]  # PNG of each of PICTURES
    kept: float  # share of the pixels whose label may teach
    right: float | None  # share of the kept pixels that are right; None without truth, or where nothing is kept


@dataclass(slots=True)
class ProbeBook:
    """Probes, and their frames by optimiser step."""

    probes: list[Probe] = field(default_factory=list)
    frames: dict[int, list[Frame]] = field(default_factory=dict)  # step -> one for each probe

    def serialize(self) -> bytes:
        """The file; equal books give equal bytes."""
        index = {
            "schema": SCHEMA,
            "probes": [{"id": probe.id, "role": probe.role, "truth": probe.truth is not None} for probe in self.probes],
            "frames": [
                {"step": step, "probes": [{"kept": frame.kept, "right": frame.right} for frame in frames]}
                for step, frames in self.frames.items()
            ],
        }
        files = {INDEX: json.dumps(index, indent=1).encode()}
        for number, probe in enumerate(self.probes):
            files[f"{number}/image.jpg"] = probe.image
            if probe.truth is not None:
                files[f"{number}/truth.png"] = probe.truth
        for step, frames in self.frames.items():
            for number, frame in enumerate(frames):
                files |= {f"{number}/{step:08d}-{name}.png": picture for name, picture in frame.pictures.items()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:  # pictures are small already
            for name, content in files.items():
                file.writestr(zipfile.ZipInfo(name), content)  # of 1980: no clock gets in
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> ProbeBook:
        """Inverse of :meth:`serialize`.

        Raises:
            DataError: The file is missing, damaged, or of another version.
        """
        try:
            with zipfile.ZipFile(path) as file:
                index = json.loads(file.read(INDEX))
                if index["schema"] != SCHEMA:
                    raise ValueError(f"schema {index['schema']}")
                book = cls()
                for number, probe in enumerate(index["probes"]):
                    truth = file.read(f"{number}/truth.png") if probe["truth"] else None
                    book.probes.append(Probe(str(probe["id"]), str(probe["role"]), file.read(f"{number}/image.jpg"), truth))
                for frame in index["frames"]:
                    step = int(frame["step"])
                    book.frames[step] = [
                        Frame(
                            {name: file.read(f"{number}/{step:08d}-{name}.png") for name in PICTURES},
                            float(shares["kept"]),
                            None if shares["right"] is None else float(shares["right"]),
                        )
                        for number, shares in enumerate(frame["probes"])
                    ]
                return book
        except Exception as error:  # a damaged zip raises whatever its bytes happen to say
            raise DataError(f"{path} holds no probe images ({error!r}). Run `cwbass train` again.") from error


def choose_probes(unlabeled: Sequence[Sample], selection: Sequence[Sample], count: int) -> list[tuple[str, Sample]]:
    """Images to be looked at: half from the selection slice, where there is one, evenly spread over each list.

    Args:
        unlabeled: To choose from.
        selection: Likewise, with masks.
        count: Of both together, at most.

    Returns:
        Role (``unlabelled`` or ``selection``) and sample of each.
    """
    held = min(count // 2, len(selection))
    free = min(count - held, len(unlabeled))
    return [
        *(("unlabelled", sample) for sample in spread(unlabeled, free)),
        *(("selection", sample) for sample in spread(selection, held)),
    ]


def frame_epochs(epochs: int) -> frozenset[int]:
    """Which of a stage's epochs, from 0, get a frame: all, or ``MAX_FRAMES`` evenly spread, the first and the last among them."""
    if epochs <= MAX_FRAMES:
        return frozenset(range(epochs))
    return frozenset(round(i * (epochs - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES))


def draw_probe(role: str, sample_id: str, image: NDArray[np.uint8], truth: NDArray[np.uint8] | None, spec: DatasetSpec) -> Probe:
    """An image to be looked at, and its truth, as files. image [H, W, 3] and truth [H, W], both uint8."""
    buffer = io.BytesIO()
    Image.fromarray(shrink(image, Image.Resampling.BOX)).save(buffer, "JPEG", quality=85)
    return Probe(sample_id, role, buffer.getvalue(), None if truth is None else _classes(truth, spec))


def draw_frame(
    label: NDArray[np.uint8],
    confidence: NDArray[np.float32],
    kept: NDArray[np.bool_],
    near: NDArray[np.bool_],
    truth: NDArray[np.uint8] | None,
    spec: DatasetSpec,
) -> Frame:
    """What a network says of one image.

    Args:
        label: Class of each pixel. [H, W] uint8.
        confidence: In [0, 1]. [H, W] float32.
        kept: Pixels whose label may teach. [H, W] bool.
        near: Pixels near a boundary of the label. [H, W] bool.
        truth: Class or ``ignore_index``; None where there is no mask. [H, W] uint8.
        spec: Palette and ignore value.
    """
    right = None
    if truth is not None and (known := kept & (truth != spec.ignore_index)).any():
        right = float((truth == label)[known].mean())
    levels = (shrink(confidence, Image.Resampling.BOX) * (LEVELS - 1)).round().clip(0, LEVELS - 1).astype(np.uint8)
    pictures = {
        "label": _classes(label, spec),
        "kept": _classes(np.where(kept, label, np.uint8(spec.ignore_index)), spec),
        "confidence": _png(levels, viridis(np.linspace(0, 1, LEVELS)).tolist()),
        "zones": _png(shrink((2 * near + ~kept).astype(np.uint8)), list(ZONES.values())),
    }
    return Frame(pictures, float(kept.mean()), right)


def viridis(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Colours from dark violet for 0 to yellow for 1. [...] -> [..., 3] uint8."""
    anchors = np.linspace(0, 1, len(VIRIDIS))
    painted = np.stack([np.interp(values, anchors, channel) for channel in VIRIDIS.T], axis=-1)
    colors: NDArray[np.uint8] = painted.round().astype(np.uint8)
    return colors


def _classes(label: NDArray[np.uint8], spec: DatasetSpec) -> bytes:
    none = spec.num_classes
    known = np.where(label == spec.ignore_index, np.uint8(none), label)
    return _png(shrink(known), [*spec.palette, (128, 128, 128)], clear=none)


def shrink(
    pixels: NDArray[Any], resampling: Image.Resampling = Image.Resampling.NEAREST, longest: int = MAX_SIDE
) -> NDArray[Any]:
    """A picture [H, W, ...] made so small that no side exceeds ``longest``, with its aspect; a small one stays as it is."""
    height, width = pixels.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, resampling))


def _png(values: NDArray[np.uint8], colors: Sequence[Sequence[int]], clear: int | None = None) -> bytes:
    """A picture of palette indices; ``clear`` is see-through."""
    buffer = io.BytesIO()
    with_palette(values, colors).save(buffer, "PNG", optimize=True, **({} if clear is None else {"transparency": clear}))
    return buffer.getvalue()
