"""Freed memory: whether the system has to give it anew, told by page faults in a process of its own; and cycles."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cwbass.data.base import DatasetSpec, default_palette
from cwbass.data.inspection import inspect_image, inspect_mask
from cwbass.memory import collector_paused

PROGRAM = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from cwbass.memory import keep_freed_memory
    keep_freed_memory()
if sys.argv[1] == "steps":
    import cwbass.steps


def use() -> None:
    arrays = [np.ones(1 << 17) for _ in range(3)]  # 1 MB, or 256 pages, each


use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc keeps memory by its own rules")
def test_freed_memory_is_used_again() -> None:
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", PROGRAM, mode], check=True, capture_output=True).stdout)
        for mode in ("keep", "steps", "default")
    }
    assert max(faults["keep"], faults["steps"]) < 100 < faults["default"], faults


def test_the_collector_runs_again_whatever_happens() -> None:
    @collector_paused()
    def fail() -> None:
        assert not gc.isenabled()
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):
            fail()
        assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()  # as it was found
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_files_that_are_looked_at_while_it_is_paused_leave_no_cycles(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 2, (40, 30), dtype=np.uint8))
    for suffix in ("jpg", "png", "tif", "webp"):
        picture.save(tmp_path / f"whole.{suffix}", exif=exif)
        (tmp_path / f"cut.{suffix}").write_bytes((tmp_path / f"whole.{suffix}").read_bytes()[:100])
    spec = DatasetSpec(("a", "b"), default_palette(2), ids={0: 0, 1: 1})

    def look() -> None:
        for path in tmp_path.iterdir():
            inspect_image(path)
            inspect_mask(path, spec)

    look()  # modules are imported
    gc.collect()
    with collector_paused():
        look()
        assert gc.collect() == 0
