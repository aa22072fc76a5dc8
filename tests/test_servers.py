"""The servers of the tests end with the tests, however those end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import subprocess, sys
from servers import die_with_parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=die_with_parent)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_server_dies_with_a_test_run_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert running(child)
        parent.kill()
    end = time.monotonic() + 10
    while running(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not running(child)


def running(process: Path) -> bool:
    """Whether a process is there and no zombie, for which nobody may have asked yet."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
