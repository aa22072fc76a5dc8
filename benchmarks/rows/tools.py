"""What the command line and the tools about it cost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import yaml

from benchmarks.harness import Row, Samples, Unavailable, at_most
from benchmarks.load import write_dataset
from benchmarks.photos import VOC, write_photos
from cwbass.data import list_dataset
from cwbass.data.listing import scan
from cwbass.data.parallel import map_threads
from cwbass.memory import collector_paused, keep_freed_memory
from cwbass.steps.check import check_data
from cwbass.steps.split import SplitParams, split

PROJECT = Path(__file__).parents[2]
CLASSES = 21
IMAGES_OF_REPRO = 20_000
PHOTOS = 800  # of split and check, all with masks
NAMES, MASKS = 1_000_000, 20_000
PART = 25  # of them, where every image is opened: it takes as long for each


def help_text(repeats: int) -> Samples:
    """Wall time of ``cwbass --help``, a process of its own each time."""
    return Samples([seconds([sys.executable, "-m", "cwbass", "--help"], PROJECT) for _ in range(repeats + 1)][1:], None)


def unchanged_repro(repeats: int) -> Samples:
    """Wall time of ``dvc repro`` with the project's dvc.yaml where nothing has changed."""
    if find_spec("dvc") is None:
        raise Unavailable("no dvc: pip install 'cwbass[dvc]'")
    dvc = [sys.executable, "-m", "dvc"]
    with tempfile.TemporaryDirectory(prefix="cwbass-bench-") as folder:
        project = Path(folder)
        shutil.copytree(PROJECT / "cwbass", project / "cwbass", ignore=shutil.ignore_patterns("__pycache__"))
        params = yaml.safe_load((PROJECT / "params.yaml").read_text())
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(PROJECT / name, project / name)
        write_dataset(project / params["data"]["root"], IMAGES_OF_REPRO, 64)
        _write_outs(project)
        for command in (["init", "--no-scm", "-q"], ["commit", "-f", "-q"]):  # as if every stage had run
            subprocess.run([*dvc, *command], cwd=project, check=True)
        times = [seconds([*dvc, "repro"], project, b"Data and pipelines are up to date.") for _ in range(repeats + 1)]
    return Samples(times[1:], None, note=f"{IMAGES_OF_REPRO} images of 64 x 64, half with masks")


def _write_outs(project: Path) -> None:
    """Something at the place of everything that a stage of dvc.yaml writes."""
    for stage in yaml.safe_load((project / "dvc.yaml").read_text())["stages"].values():
        entries = [entry for key in ("outs", "metrics", "plots") for entry in stage.get(key, [])]
        for out in (project / (entry if isinstance(entry, str) else next(iter(entry))) for entry in entries):
            if out.suffix:
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text("{}")
            else:
                out.mkdir(parents=True, exist_ok=True)
                for name in ("warmup.pt", "manifest.json"):
                    (out / name).write_text("{}")


def split_and_check(masked: int, repeats: int) -> Samples:
    """Both steps on photographs of which every ``masked``-th has a mask, against decoding every file once."""
    keep_freed_memory()  # as every command does
    with tempfile.TemporaryDirectory(prefix="cwbass-bench-") as folder:
        root = Path(folder) / "data"
        samples = write_photos(root, PHOTOS, VOC, CLASSES)
        for index, sample in enumerate(samples):
            if index % masked:
                (root / (sample.mask or "")).unlink()
        files = [path for name in ("images", "masks") for path in sorted((root / name).iterdir())]
        params = SplitParams.model_validate({"data": {"root": str(root)}})

        def ours() -> None:
            split(params, data_root=root, out_dir=Path(folder) / "split")
            with collector_paused():  # as `cwbass check` does
                check_data(params, list_dataset(params.data, params.split, root), data_root=root)

        ours_s, against_s = in_turn(ours, lambda: list(map_threads(decode, files)), repeats)
    return Samples(ours_s, against_s, note=f"{PHOTOS} images of 500 x 375; both steps read the masks")


def many_names(repeats: int) -> Samples:
    """``split`` of a million names, of which few have masks, against listing them and decoding the masks once."""
    keep_freed_memory()  # as every command does
    with tempfile.TemporaryDirectory(prefix="cwbass-bench-") as folder:
        root = Path(folder) / "data"
        write_links(root, NAMES, MASKS, empty=True)
        params = SplitParams.model_validate({"data": {"root": str(root)}})

        def against() -> None:
            list(scan(root, "images"))
            list(map_threads(decode, [root / "masks" / name for name in scan(root, "masks")]))

        ours_s, against_s = in_turn(lambda: split(params, data_root=root, out_dir=Path(folder) / "split"), against, repeats)
    return Samples(ours_s, against_s, note="masks of 500 x 375; the images are never opened")


def many_files(repeats: int) -> Samples:
    """``split`` and ``check`` of a part of as many images, as few of them with masks, against decoding every file once."""
    keep_freed_memory()  # as every command does
    with tempfile.TemporaryDirectory(prefix="cwbass-bench-") as folder:
        root = Path(folder) / "data"
        write_links(root, NAMES // PART, MASKS // PART, empty=False)
        params = SplitParams.model_validate({"data": {"root": str(root)}})

        def ours() -> None:
            split(params, data_root=root, out_dir=Path(folder) / "split")
            with collector_paused():  # as `cwbass check` does
                check_data(params, list_dataset(params.data, params.split, root), data_root=root)

        def against() -> None:
            for name in ("images", "masks"):
                list(map_threads(decode, [root / name / file for file in scan(root, name)]))

        ours_s, against_s = in_turn(ours, against, repeats)
    return Samples(ours_s, against_s, note=f"{NAMES // PART:,} images of 500 x 375, {MASKS // PART} of them with masks")


def write_links(root: Path, names: int, masks: int, *, empty: bool) -> None:
    """Images of which the first have masks, all of 250 photographs by many names; or ``empty`` images but for these."""
    first = write_photos(root, 250, VOC, CLASSES)
    for index in range(len(first), names):
        like, image, mask = first[index % len(first)], root / f"images/{index:06}.jpg", root / f"masks/{index:06}.png"
        if empty:
            image.touch()
        else:
            image.hardlink_to(root / like.image)
        if index < masks:
            mask.hardlink_to(root / (like.mask or ""))


def decode(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as file:
        file.load()


def in_turn(ours: Callable[[], object], against: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of both, each repeat."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, own in zip((ours, against), found, strict=True):
            started = time.perf_counter()
            call()
            own.append(time.perf_counter() - started)
    return found


def seconds(command: list[str], folder: Path, expected: bytes = b"") -> float:
    """Wall time of a command that must succeed and print ``expected``."""
    started = time.perf_counter()
    output = subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout
    took = time.perf_counter() - started
    if expected not in output:
        raise RuntimeError(f"{' '.join(command)} printed {output[-300:]!r}, not {expected!r}")
    return took


ROWS = (
    Row("tools.help", "cwbass --help", "", at_most(0.3), help_text, 15),
    Row("tools.repro", "unchanged dvc repro on 20,000 images", "", at_most(5), unchanged_repro, 5),
    Row(
        "tools.split_check",
        "split and check, a fifth with masks",
        "decoding every file once",
        at_most(1.3),
        partial(split_and_check, 5),
        7,
    ),
    Row(
        "tools.split_check_masks",
        "split and check, all with masks",
        "decoding every file once",
        at_most(1.3),
        partial(split_and_check, 1),
        7,
    ),
    Row(
        "tools.split_check_names",
        f"split and check, {MASKS / NAMES:.0%} with masks",
        "listing and decoding every file once",
        at_most(1.3),
        many_files,
        1,
    ),
    Row("tools.names", "split of 1,000,000 names, 20,000 masks", "listing them and decoding the masks", None, many_names, 2),
)
