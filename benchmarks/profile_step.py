"""Where each millisecond of a training step goes.

    python -m benchmarks.profile_step [r50|lite0] [--bfloat16] [--steps 3]

Self time by torch.profiler, by part of the step: which network and which pass, what the method does between them, and
what comes after. A backward operation belongs to the student where its forward one ran inside it, and else to the losses.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.cases import R50, bfloat16, lite0, whole_step
from cwbass.methods.cw_bass import CwBass
from cwbass.training import loop

STUDENT, BACKWARD = "student forward", "autograd::engine::evaluate_function"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", choices=("r50", "lite0"), default="lite0")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    case = lite0() if arguments.case == "lite0" else R50
    case = bfloat16(case) if arguments.bfloat16 else case
    method = case.method()
    name_parts(method)
    step = whole_step(case, method)
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(arguments.steps):
            step()
    print(case.name)
    report(found.events(), arguments.steps)


def name_parts(method: CwBass) -> None:
    """Let the profile see which part of a step an operation belongs to."""
    method.teacher.forward = named("teacher forward", method.teacher.forward)  # type: ignore[method-assign]
    for part_of_network in ("encode", "decode"):  # a method may call them apart
        setattr(method.student, part_of_network, named(STUDENT, getattr(method.student, part_of_network)))
    method.training_step = named("pseudo-labels and losses", method.training_step)  # type: ignore[method-assign]
    method.after_optimizer_step = named("teacher's update", method.after_optimizer_step)  # type: ignore[method-assign]
    loop.seed_everything = named("seeding", loop.seed_everything)


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **settings: Any) -> Any:
        with record_function(name):
            return function(*args, **settings)

    return call


def report(events: Any, steps: int) -> None:
    """Milliseconds a step of each part, and the operations that take most of it."""
    of_student = {event.sequence_nr for event in events if event.sequence_nr >= 0 and part(event, set()) == STUDENT}
    parts: dict[str, Counter[str]] = {}
    for event in events:
        parts.setdefault(part(event, of_student), Counter())[event.name] += event.self_cpu_time_total / 1e3 / steps
    whole = sum(sum(part.values()) for part in parts.values())
    print(f"{'':28s}{'ms':>9s}{'share':>8s}  mostly")
    for name, times in sorted(parts.items(), key=lambda item: -sum(item[1].values())):
        total = sum(times.values())
        most = ", ".join(f"{op.removeprefix('aten::')} {spent:.1f}" for op, spent in times.most_common(3))
        print(f"{name:28s}{total:9.2f}{total / whole:8.1%}  {most}")
    print(f"{'a step':28s}{whole:9.2f}")


def part(event: Any, of_student: set[int]) -> str:
    """Which part of the step an operation belongs to: that of the innermost range around it."""
    while event is not None:
        if event.name.startswith(BACKWARD):
            return "student backward" if event.sequence_nr in of_student else "backward of losses"
        if event.name.startswith("Optimizer."):
            return "optimiser"
        if not event.name.startswith(("aten::", "torch::", "autograd::", "[")) and event.name in PARTS:
            return str(event.name)
        event = event.cpu_parent
    return "loop"


PARTS = {"teacher forward", STUDENT, "pseudo-labels and losses", "teacher's update", "seeding"}

if __name__ == "__main__":
    main()
