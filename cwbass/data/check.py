"""The data check: everything about the files that would spoil a training run, before it starts.

Every file is read once. Masks are opened only where the split may use them: those of labelled,
selection and test images, never those of unlabelled ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cwbass.config import AugmentConfig
from cwbass.data import findings
from cwbass.data.base import DatasetSpec, Sample, spread
from cwbass.data.findings import File, Finding
from cwbass.data.inspection import MaskFacts, inspect_image, inspect_mask
from cwbass.data.listing import Listing, scan
from cwbass.data.manifest import ROLES, Manifest
from cwbass.data.parallel import map_threads
from cwbass.data.splits import NOTHING_SEEN

DRAWN = 6  # samples of each role whose masks are worth a look


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """What the images of one role are; of unlabelled ones no mask is opened."""

    images: int
    pixels: tuple[int, ...]  # of each class. [C]
    shown_by: tuple[int, ...]  # masks that show each class. [C]
    examples: tuple[Sample, ...]  # evenly spread over those whose mask can be read


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was looked at and what was found, errors first."""

    images: int  # files read
    masks: int  # files read
    spec: DatasetSpec
    roles: Mapping[str, RoleFacts]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that would stop or spoil a run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that somebody should look at."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "images": self.images,
            "masks": self.masks,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "roles": {
                role: {
                    "images": facts.images,
                    "pixels": dict(zip(self.spec.class_names, facts.pixels, strict=True)),
                    "shown_by": dict(zip(self.spec.class_names, facts.shown_by, strict=True)),
                }
                for role, facts in self.roles.items()
            },
            "findings": [finding.to_dict() for finding in self.findings],
        }


def inspect_masks(samples: Sequence[Sample], root: Path, spec: DatasetSpec) -> dict[str, MaskFacts]:
    """What is to be seen of each mask of the samples, by its path."""
    names = [sample.mask for sample in samples if sample.mask is not None]
    return dict(zip(names, map_threads(lambda name: inspect_mask(root / name, spec), names), strict=True))


def check_dataset(
    listing: Listing,
    manifest: Manifest | None,
    root: Path,
    seen: Mapping[str, MaskFacts] = NOTHING_SEEN,
    *,
    views: AugmentConfig | None = None,
) -> CheckReport:
    """Read every file of the dataset and report what is wrong.

    Args:
        listing: What ``list_dataset`` found.
        manifest: The roles. Without it, all images of ``listing.train`` have the role ``train``,
            and all masks in ``listing`` are opened.
        root: Folder the samples' paths are relative to.
        seen: Of :func:`inspect_masks`; what is in it is not read again.
        views: How crops are drawn, to see whether they fit the images; None: it is not looked at.
    """
    if manifest is not None:
        roles = {role: manifest.samples(role) for role in ROLES}
    else:
        roles = {"train": listing.train, "test": listing.test}

    def look(item: tuple[str, Sample]) -> File:
        role, sample = item
        mask = None if sample.mask is None else seen.get(sample.mask) or inspect_mask(root / sample.mask, listing.spec)
        return File(role, sample, inspect_image(root / sample.image), mask)

    files = list(map_threads(look, [(role, sample) for role, samples in roles.items() for sample in samples]))
    spec = listing.spec
    found = [
        *findings.unreadable(files),
        *findings.rgb_masks(files, spec),
        *findings.index_masks(files),
        *findings.binary(files, spec),
        *findings.mixed_binary(files, spec),
        *findings.foreign_values(files, spec),
        *findings.soft_borders(files),
        *findings.sizes(files),
        *findings.palettes(files, spec),
        *findings.dim(files),
        *findings.frames(files),
        *findings.rotated(files),
        *findings.all_ignored(files),
        *findings.missing_classes(files, spec),
        *findings.near_duplicates(files),
        *(findings.small_crops(files, views) if views is not None else ()),
        *(findings.lost_masks(listing) if manifest is not None else ()),
        *findings.unread(scan(root, ".")),
    ]
    return CheckReport(
        images=len(files),
        masks=sum(file.mask is not None for file in files),
        spec=spec,
        roles={role: _facts([file for file in files if file.role == role], spec.num_classes) for role in roles},
        findings=tuple(sorted(found, key=lambda finding: finding.severity)),
    )


def _facts(files: Sequence[File], num_classes: int) -> RoleFacts:
    sound = [(file.sample, file.mask.pixels) for file in files if file.mask is not None and file.mask.sound]
    pixels = np.array([pixels for _, pixels in sound], dtype=np.int64).reshape(len(sound), num_classes)
    examples = tuple(spread([sample for sample, _ in sound], DRAWN))
    return RoleFacts(len(files), tuple(pixels.sum(0).tolist()), tuple((pixels > 0).sum(0).tolist()), examples)
