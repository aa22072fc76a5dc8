"""Freed memory: whether the system has to give it anew, told by page faults in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
