"""The data check as one HTML file: what is wrong, what each role shows of each class, and masks in colours over their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cwbass.data.base import read_image, read_mask
from cwbass.data.check import CheckReport
from cwbass.errors import counted
from cwbass.files import write_whole
from cwbass.provenance import versions
from cwbass.reporting.gallery import GalleryItem, draw_panels
from cwbass.reporting.svg import NONE
from cwbass.reporting.templates import template


def write_check(path: Path, report: CheckReport, *, name: str, root: Path) -> None:
    """Write the page; it needs no script and no network.

    Args:
        path: The HTML file; its folder is made.
        report: Of the check.
        name: Of the dataset.
        root: Its folder.
    """
    spec, masked = report.spec, {role: facts for role, facts in report.roles.items() if sum(facts.pixels)}
    page = template("check.html.j2").render(
        name=name,
        images=report.images,
        masks=report.masks,
        verdict=_verdict(report),
        findings=[*report.errors, *report.warnings],
        counts={role: facts.images for role, facts in report.roles.items()},
        roles=list(masked),
        classes=[
            (each, [(_share(facts.pixels, index), f"{facts.shown_by[index]:,}") for facts in masked.values()])
            for index, each in enumerate(spec.class_names)
        ],
        gallery=[(item.title, list(draw_panels(item, spec, "model", "baseline"))) for item in _examples(report, root)],
        palette=list(zip(spec.class_names, spec.palette, strict=True)),
        versions=versions(),
    )
    write_whole(path, page.encode())


def _verdict(report: CheckReport) -> str:
    errors, warnings = counted(len(report.errors), "error"), counted(len(report.warnings), "warning")
    if report.errors:
        return (
            f"{errors} that would stop or spoil a run, and {warnings}."
            if report.warnings
            else f"{errors} that would stop or spoil a run."
        )
    return f"Nothing would stop a run; {warnings} to look at." if report.warnings else "No problem was found."


def _share(pixels: tuple[int, ...], index: int) -> str:
    """Of the pixels of a class among those of all, in per cent."""
    return f"{100 * pixels[index] / sum(pixels):.2f}" if pixels[index] else NONE


def _examples(report: CheckReport, root: Path) -> Iterator[GalleryItem]:
    for role, facts in report.roles.items():
        for sample in facts.examples:
            assert sample.mask is not None
            image, mask = read_image(root / sample.image), read_mask(root / sample.mask, report.spec)
            if image.shape[:2] == mask.shape:
                yield GalleryItem(f"{sample.id}, {role}", image, truth=mask, prediction=None)
