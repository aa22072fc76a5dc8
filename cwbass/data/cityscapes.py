"""The layout of Cityscapes, with its 19 classes.

    leftImg8bit/<split>/<city>/<frame>_leftImg8bit.png
    gtFine/<split>/<city>/<frame>_gtFine_labelTrainIds.png   or ..._labelIds.png

Trained on are train and, where it is there, train_extra (which has no fine masks); tested on is
val. The splits named test have no public masks and are passed over.
"""

from __future__ import annotations

from pathlib import Path

from cwbass.config import DataConfig
from cwbass.data.classes import RawClasses, build_spec
from cwbass.data.listing import DatasetFiles, check_name, scan
from cwbass.errors import DataError, ParamsError, counted

# name, colour, and value in labelIds; the place in the list is the value in labelTrainIds.
# Source: the Cityscapes benchmark's definition of its labels.
CLASSES = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)
NUM_LABEL_IDS = 34  # 0..33; the 15 that are no class are ignored, as the benchmark does
TRAIN_IDS, LABEL_IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"


def cityscapes(root: Path, config: DataConfig) -> DatasetFiles:
    """Find frames by their names. An id is ``<split>/<city>/<frame>``, as in the field's lists.

    labelTrainIds are used where every frame with labelIds has them, else labelIds.

    Raises:
        DataError: A folder is missing, or neither kind of mask is complete.
        ParamsError: data.classes does not rename all 19 classes.
    """
    images = _by_frame(root, "leftImg8bit", "_leftImg8bit.png")
    train_ids = _by_frame(root, "gtFine", TRAIN_IDS)
    label_ids = _by_frame(root, "gtFine", LABEL_IDS)
    whole = train_ids.keys() >= label_ids.keys()
    if not whole and not label_ids.keys() >= train_ids.keys():
        lone = min(train_ids.keys() - label_ids.keys())
        raise DataError(
            f"{root}/{train_ids[lone]}: has no labelIds, while other frames have no labelTrainIds. "
            "Make all masks of one kind (Cityscapes' own scripts do it)."
        )
    values = {place: place for place in range(len(CLASSES))} if whole else _label_ids()
    return DatasetFiles(
        spec=build_spec(RawClasses(_names(config), tuple(color for _, color, _ in CLASSES), values), config),
        images=images,
        masks=train_ids if whole else label_ids,
        train=tuple(id for id in images if id.startswith(("train/", "train_extra/"))),
        test=tuple(id for id in images if id.startswith("val/")),
    )


def _by_frame(root: Path, folder: str, ending: str) -> dict[str, str]:
    found = [name for name in scan(root, folder) if name.endswith(ending)]
    for name in found:
        check_name(root / folder, name)
    return {name.removesuffix(ending): f"{folder}/{name}" for name in found}


def _label_ids() -> dict[int, int | None]:
    places = {value: place for place, (_, _, value) in enumerate(CLASSES)}
    return {value: places.get(value) for value in range(NUM_LABEL_IDS)}


def _names(config: DataConfig) -> tuple[str, ...]:
    names = tuple(name for name, _, _ in CLASSES)
    if config.colors is not None:
        raise ParamsError("data.colors is for RGB masks; Cityscapes' masks hold ids. Remove it.")
    if config.classes is None:
        return names
    if len(config.classes) != len(names):
        raise ParamsError(
            f"data.classes names {counted(len(config.classes), 'class', 'classes')}; it can only rename all {len(names)} of Cityscapes. "
            "Use data.merge and data.ignore_classes to have fewer."
        )
    return tuple(config.classes)
