"""Step ``split``: draw the roles and write them down."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cwbass.data import list_dataset
from cwbass.data.lists import line_of
from cwbass.data.manifest import ROLES
from cwbass.data.splits import draw_roles
from cwbass.files import spare_params, write_whole
from cwbass.memory import collector_paused
from cwbass.params import SplitSections, dump_params, flatten, read_params
from cwbass.training.identity import differences

MANIFEST, PARAMS = "manifest.json", "params.yaml"
_FREE = ("seed", "data.root")  # may be others after the split than they were for it

logger = logging.getLogger(__name__)


class SplitParams(SplitSections):
    """What the split depends on."""


@dataclass(frozen=True, slots=True)
class SplitReport:
    """The split in numbers."""

    hash: str  # of the manifest
    seed: int
    counts: Mapping[str, int]  # images of each role
    notes: tuple[str, ...]
    pixel_share: Mapping[str, Mapping[str, float]]  # class -> share of pixels in labeled, selection and pool, in [0, 1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "notes": list(self.notes)}


@collector_paused()
def split(params: SplitParams, *, data_root: Path, out_dir: Path) -> SplitReport:
    """Draw the split of the dataset below ``data_root``.

    Writes ``manifest.json``, which the other steps read, ``params.yaml``, with which they compare theirs, and for people
    and other tools ``labeled.txt``, ``unlabeled.txt``, ``selection.txt`` and ``test.txt``, one id a line.

    Raises:
        DataError: The dataset or a list is wrong; the message names the file.
        ParamsError: The parameters do not fit the dataset, or the folder holds somebody else's ``params.yaml``.
    """
    spare_params(out_dir, MANIFEST)
    listing = list_dataset(params.data, params.split, data_root)
    draw = draw_roles(listing, params.split, root=data_root, seed=params.seed)
    manifest = draw.manifest
    manifest.write(out_dir / MANIFEST)
    write_whole(out_dir / PARAMS, dump_params(params).encode())
    for role in ROLES:
        lines = "".join([f"{line_of(sample.id, sample.image)}\n" for sample in manifest.samples(role)])
        write_whole(out_dir / f"{role}.txt", lines.encode())
    logger.info("split %s: %s", manifest.hash[:12], manifest.counts)
    for note in manifest.notes:
        logger.warning("%s", note)

    shares = {
        "labeled": _shares([sample.pixels or () for sample in manifest.labeled]),
        "selection": _shares([sample.pixels or () for sample in manifest.selection]),
        "pool": _shares([draw.pool_pixels]),
    }
    return SplitReport(
        hash=manifest.hash,
        seed=manifest.seed,
        counts=manifest.counts,
        notes=manifest.notes,
        pixel_share={
            name: {role: share[index] for role, share in shares.items() if share}
            for index, name in enumerate(manifest.spec.class_names)
        },
    )


def warn_of_changes(manifest: Path, params: SplitSections) -> None:
    """Say where a split was drawn with other parameters than those it is used with: these change nothing any more."""
    drawn = manifest.with_name(PARAMS)
    if not drawn.is_file():  # the manifest was copied alone
        return
    there = {key: value for key, value in read_params(drawn).items() if key in SplitParams.model_fields}
    now = params.model_dump(mode="json", include=set(SplitParams.model_fields))
    if lines := differences(flatten(there), flatten(now), _FREE):
        logger.warning(
            "%s was drawn with other parameters, and counts as it is; `cwbass split` draws it anew:\n%s",
            manifest,
            "\n".join(lines),
        )


def _shares(pixels: Sequence[Sequence[int]]) -> list[float]:
    """Share of each class in all pixels of a class; empty where there is no image."""
    sums = [sum(column) for column in zip(*pixels, strict=True)]
    return [n / max(1, sum(sums)) for n in sums]
