"""How much memory things take: of a step in a process of its own, and of a few operations by the byte.

    python -m benchmarks.peak "ours lite0" "plain r50" "ours r50 bfloat16" "default lite0 classes=150 size=96" ...

prints for each the megabytes that a process needs to take training steps: its peak resident memory less what it had before
the networks were built. Weights, gradients, moments and the teacher are in it, and what oneDNN takes beside torch. ``ours`` is
the published recipe, as ``plain`` is, and ``default`` the project's own.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

STEPS = 2
# Else glibc keeps blocks of up to 32 MB that were freed, and the peak is one of luck.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


def peaks_of_steps(*wanted: str) -> list[float]:
    """Megabytes of processes that take steps; see the module's command."""
    command = [sys.executable, "-m", "benchmarks.peak", *wanted]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | GIVE_BACK)
    return [float(line) for line in ended.stdout.split()]


def peak_of_call(call: Callable[[], object]) -> float:
    """Megabytes that torch's allocator holds for a call at its height, beyond what it held before.

    Exact, for operations that take nothing beside it; kept results count.
    """
    import torch

    call()  # what is made once and kept is made now
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    return peak / 1e6


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", nargs="+", metavar="'RECIPE NET ...'", help="ours, plain or default; r50 or lite0; settings")
    wanted = parser.parse_args(arguments).wanted
    import benchmarks.plain  # noqa: F401 - all is imported before the first process parts

    for words in wanted:
        if (child := os.fork()) == 0:
            print(_peak_of_steps(*words.split()), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"the process of {words!r} ended with status {status}")


def _peak_of_steps(which: str, name: str, *settings: str) -> float:
    from dataclasses import replace

    from benchmarks.cases import R50, bfloat16, lite0, published, whole_step
    from benchmarks.plain import plain_step

    case = {"r50": R50, "lite0": lite0()}[name]
    case = case if which == "default" else published(case)
    for setting in settings:
        key, _, value = setting.partition("=")
        case = replace(case, **{key: int(value)}) if value else bfloat16(case)  # type: ignore[arg-type]
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step = plain_step(case) if which == "plain" else whole_step(case, case.method())
    for _ in range(STEPS):
        step()
    return _resident("VmHWM") - before


def _resident(which: str) -> float:
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    main(sys.argv[1:])
