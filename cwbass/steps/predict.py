"""Step ``predict``: masks and overlays for a folder of images."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cwbass.config import EvalConfig
from cwbass.data.base import IMAGE_SUFFIXES, UNREAD_SUFFIXES, read_image
from cwbass.data.label_maps import save_whole, with_palette
from cwbass.data.listing import guess_layout, scan
from cwbass.errors import DataError, ParamsError, counted
from cwbass.evaluation.inference import Predictor
from cwbass.pixels import highest
from cwbass.progress import counting
from cwbass.registry.resolve import open_checkpoint
from cwbass.reporting.images import colorize
from cwbass.steps.checkpoints import chosen_file
from cwbass.training.device import place, scoring_device

logger = logging.getLogger(__name__)

OVERLAY_ALPHA = 0.55
LONGEST_JPEG = 65500  # pixels of a side that libjpeg writes
LONGEST_NAME = 255 - len(".png")  # bytes
MASKS, OVERLAYS, CONFIDENCE = "masks", "overlays", "confidence"


@dataclass(frozen=True, slots=True)
class PredictReport:
    """What was written."""

    images: int
    failed: dict[str, str]  # file -> why it could not be read
    out_dir: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def predict(
    config: EvalConfig | None = None,
    *,
    checkpoint: Path,
    images: Path,
    out_dir: Path,
    overlays: bool = True,
    confidence: bool = False,
    device: str = "auto",
) -> PredictReport:
    """Write ``masks/<name>.png`` (palette, class indices) and ``overlays/<name>.jpg`` for every image.

    With ``confidence`` also ``confidence/<name>.png``: the probability of the class that is written, 0 to 1 as 0 to 255, grey.

    The name is that of the image without its suffix, as that of a mask is, and the tree of folders is kept. Where two images
    differ by their suffix alone, all keep it: ``a.jpg.png`` and ``a.png.png``. A file that cannot be read, or whose name then
    leaves no room for a second suffix, is reported and passed over.

    Args:
        config: How to predict; None takes what the checkpoint was trained with.
        checkpoint: A file, a training's folder, whose checkpoint that counts is taken, or the folder of a registered version.
        images: An image, or a folder that is searched as those of a dataset are, at any depth and along links; results of an
            earlier run in it are passed over.
        out_dir: Where results go.
        overlays: Whether to draw overlays.
        confidence: Whether to write how sure the network is of each pixel.
        device: auto, cpu or cuda. The precision is that in which the checkpoint is scored.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        DataError: There is no image, or a link leads back to a folder that it lies in.
        ParamsError: A dataset lies where results would go.
    """
    if guess_layout(out_dir) is not None:  # results have the names of its masks
        raise ParamsError(f"{out_dir} holds a dataset, whose {MASKS}/ would be written over. Give another folder with --out.")
    loaded = open_checkpoint(chosen_file(checkpoint))
    params = loaded.run_params
    config = params.eval if config is None else config
    predictor = Predictor(config, *scoring_device(device, params.train.precision))
    net = place(loaded.network(config.weights), predictor.device)
    spec = loaded.dataset
    files = [images] if images.is_file() else _find(images, IMAGE_SUFFIXES, out_dir)
    if unread := [] if images.is_file() else _find(images, UNREAD_SUFFIXES, out_dir):
        one, many = "file of a kind that is not read is", "files of kinds that are not read are"
        logger.warning("%s passed over, the first %s.", counted(len(unread), one, many), unread[0])
    if not files:
        raise DataError(f"{images}: no image with a suffix of {', '.join(IMAGE_SUFFIXES)}.")
    base = images.parent if images.is_file() else images
    twins = len({path.with_suffix("") for path in files}) < len(files)
    failed: dict[str, str] = {}

    def write(path: Path, pixels: NDArray[np.uint8]) -> None:
        top, best = highest(predictor.probs(net, pixels))
        label = best.cpu().numpy().astype(np.uint8)
        name = (path if twins else path.with_suffix("")).relative_to(base)
        save_whole(with_palette(label, spec.palette), out_dir / MASKS / name.with_name(f"{name.name}.png"))
        if confidence:
            sure = (top.float() * 255).round().byte().cpu().numpy()
            save_whole(Image.fromarray(sure), out_dir / CONFIDENCE / name.with_name(f"{name.name}.png"))
        if overlays and max(label.shape) > LONGEST_JPEG:
            logger.warning("%s: no overlay, for a JPEG has at most %d pixels a side.", path, LONGEST_JPEG)
        elif overlays:
            mixed = pixels * (1 - OVERLAY_ALPHA) + colorize(label, spec) * OVERLAY_ALPHA
            target = out_dir / OVERLAYS / name.with_name(f"{name.name}.jpg")
            save_whole(Image.fromarray(mixed.astype(np.uint8)), target, "JPEG", quality=90)

    with counting("predict", len(files)) as one_more:
        for path in files:
            try:
                if twins:
                    _check_length(path)
                pixels = read_image(path)
            except DataError as error:
                logger.warning("%s", error)
                failed[str(path)] = str(error)
            else:
                write(path, pixels)
            one_more()
    if len(failed) == len(files):
        raise DataError(f"{images}: no image can be read, of {len(files)} in all; the first: {next(iter(failed.values()))}")
    return PredictReport(len(files) - len(failed), failed, str(out_dir))


def _find(folder: Path, suffixes: tuple[str, ...], out_dir: Path) -> list[Path]:
    """Files below a folder, but for what is written there."""
    place = out_dir.resolve()
    ours = [place / kind for kind in (MASKS, OVERLAYS, CONFIDENCE)] if place.is_relative_to(folder.resolve()) else []
    found = (folder / name for name in scan(folder, ".") if name.lower().endswith(suffixes))
    return sorted(path for path in found if not any(path.parent.resolve().is_relative_to(each) for each in ours))


def _check_length(path: Path) -> None:
    """Raise a DataError where the name of a mask would be too long for a file system."""
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise DataError(f"{path}: its mask would have a name of more than 255 bytes. Shorten the name to {LONGEST_NAME} bytes.")
