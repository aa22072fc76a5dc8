"""Kill training, continue it, and compare every byte with a run that was never stopped.

    python benchmarks/resume.py                # 20 random steps x 2 stages x 0 and 2 loader processes x TERM and KILL
    python benchmarks/resume.py --quick        # six cases, in under ten minutes on two cores
    python benchmarks/resume.py --faults       # a full disk, and the newest state cut off at every quarter
    python benchmarks/resume.py --json         # rows of stage, workers, signal, step, equal

Each case is three runs of the command line in processes of their own: one that is stopped at a step, one that
continues it, and, once for each stage, one that is not stopped. Two runs are equal if all their files are (but
``timings.jsonl`` and ``metrics.prom``), and student, teacher, optimiser and history by themselves. With loader processes the latter alone
are compared: a checkpoint holds the parameters, and so ``train.workers``, as text. A run that gets SIGTERM must
end with exit code 75; SIGKILL comes at a random moment after the step, so it may hit a save. Exit code 1 if any case differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARMUP_STEPS, STEPS = 21, 42
PARAMS: dict[str, Any] = {
    "split": {"selection": 0.34, "min_selection": 2},
    "augment": {"crop_size": 32, "scale": [0.7, 1.4]},
    "model": {
        "arch": "unet",
        "encoder": "tu-mobilenetv4_conv_small_050",
        "options": {"encoder_depth": 2, "decoder_channels": [8, 8]},
    },
    "method": {"name": "cw_bass", "recipe": "cwbass"},
    "train": {
        "steps": STEPS,
        "warmup_steps": WARMUP_STEPS,
        "batch_labeled": 2,
        "batch_unlabeled": 2,
        "epoch_steps": 8,  # divides neither stage, so that epochs end short, too
        "save_minutes": 0.005,
        "cache": None,
        "optimizer": {"lr": 0.002},
    },
}
# What --stages may name: the command, what it changes, and how many optimiser steps it takes.
STAGES: dict[str, tuple[str, dict[str, Any], int]] = {
    "warmup": ("warmup", {}, STEPS),
    "train": ("train", {}, STEPS - WARMUP_STEPS),
    "second_stage": (
        "train",
        {"method": {"name": "cw_bass", "recipe": "cwbass", "cwbass": {"second_stage": {"enabled": True, "steps": 12}}}},
        STEPS - WARMUP_STEPS + 24,
    ),
}
# A run that collapses, under a guard that has no patience: it goes back to earlier weights several times.
STAGES["collapse"] = (
    "train",
    {
        "method": {
            "name": "cw_bass",
            "recipe": "paper",
            "paper": {"unsup_weight": 1000.0, "ramp_epochs": 0.0, "ema": {"decay": 0.5}},
        },
        "train.guard": {"patience": 1, "variety": 1.0, "miou_fall": 0.01},
    },
    STEPS - WARMUP_STEPS,
)
SIGNALS = {"TERM": signal.SIGTERM, "KILL": signal.SIGKILL}
QUICK = [
    ("warmup", 0, "TERM"),
    ("warmup", 0, "KILL"),
    ("train", 0, "TERM"),
    ("train", 0, "KILL"),
    ("train", 2, "TERM"),
    ("warmup", 2, "KILL"),
]
INTERRUPTED = 75
UNEQUAL = ("timings.jsonl", "metrics.prom")  # what took how long


@dataclass(frozen=True)
class Bench:
    """Where the runs are, and what they share."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    def command(self, stage: str, workers: int, out: Path) -> list[str]:
        """The command line of a stage."""
        verb, changes, _ = STAGES[stage]
        sets = [f"train.workers={workers}", *(f"{key}={json.dumps(value)}" for key, value in changes.items())]
        start = ["--warmup", str(self.root / "reference-warmup" / "warmup.pt")] if verb == "train" else []
        common = ["--params", str(self.params), "--manifest", str(self.root / "split" / "manifest.json"), "--out", str(out)]
        return [verb, *common, *start, *(part for value in sets for part in ("--set", value))]

    def reference(self, stage: str) -> Path:
        """The results of a run that was not stopped, without loader processes."""
        out = self.root / f"reference-{stage}"
        if not out.exists():
            say(f"{stage}: not stopped")
            require(run(self.command(stage, 0, out), out.with_suffix(".log")), 0, out.with_suffix(".log"))
            if stage == "collapse" and '"incident"' not in (out / "history.jsonl").read_text():
                sys.exit(f"the collapse guard did not act in {out}: there is nothing to compare")
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="random steps for every stage, number of workers and signal")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["warmup", "train"])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=list(SIGNALS))
    parser.add_argument("--cases", nargs="+", metavar="STAGE:WORKERS:SIGNAL", help="these alone, one step each")
    parser.add_argument("--quick", action="store_true", help="six cases")
    parser.add_argument("--faults", action="store_true", help="a full disk and torn states, in place of signals")
    parser.add_argument("--seed", type=int, default=0, help="of the steps")
    parser.add_argument("--out", type=Path, help="keep the runs in this new folder")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    named = [(stage, int(workers), name) for stage, workers, name in (case.split(":") for case in arguments.cases or ())]
    cases = named or [
        (stage, workers, name)
        for stage in arguments.stages
        for workers in arguments.workers
        for name in arguments.signals
        for _ in range(arguments.steps)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench((arguments.out or Path(scratch)).absolute())
        prepare(bench)
        if arguments.faults:
            rows = [*torn_states(bench), *full_disks(bench)]
        else:
            rows = [kill_case(bench, *case, rng) for case in (QUICK if arguments.quick else cases)]
    show(rows, as_json=arguments.json)
    sys.exit(not all(row["equal"] for row in rows))


def prepare(bench: Bench) -> None:
    """Dataset, parameters and split; what the runs load is loaded here once, and forked."""
    import yaml

    import cwbass.steps.train
    import cwbass.steps.warmup  # noqa: F401
    from cwbass.data.synthetic import write_shapes

    bench.root.mkdir(parents=True, exist_ok=True)
    data = bench.root / "data"
    if not data.exists():
        write_shapes(data, seed=0, labeled=12, unlabeled=16, test=2, size=(64, 64))
    bench.params.write_text(yaml.safe_dump({**PARAMS, "data": {"root": str(data)}}))
    log = bench.root / "split.log"
    require(run(["split", "--params", str(bench.params), "--out", str(bench.root / "split")], log), 0, log)
    bench.reference("warmup")


def kill_case(bench: Bench, stage: str, workers: int, name: str, rng: random.Random) -> dict[str, Any]:
    """Stop a run, continue it, and compare."""
    reference = bench.reference(stage)
    step = rng.randrange(1, STAGES[stage][2])
    delay = rng.uniform(0, 0.1)
    out = bench.root / f"{stage}-{workers}-{name}-{step}"
    shutil.rmtree(out, ignore_errors=True)
    command, log = bench.command(stage, workers, out), out.with_suffix(".log")
    log.unlink(missing_ok=True)
    started = time.monotonic()
    stopped = run(command, log, lambda: at_step(step, lambda: send(SIGNALS[name], delay)))
    require(stopped, INTERRUPTED if name == "TERM" else -signal.SIGKILL, log)
    states = sorted(path.stem for path in (out / "state").glob("*.json"))
    require(run(command, log), 0, log)
    differing = [name for name in differences(reference, out) if not (workers and name.endswith((".pt", ".sha256")))]
    outcome = ", ".join(differing) or "equal"
    origin = states[-1] if states else "the start"
    say(f"{stage}, {workers} workers, SIG{name} at step {step}: {outcome} ({time.monotonic() - started:.0f} s; from {origin})")
    return {"stage": stage, "workers": workers, "signal": name, "step": step, "equal": not differing}


def torn_states(bench: Bench) -> list[dict[str, Any]]:
    """A power cut: the newest state is short, or its JSON is."""
    killed = bench.root / "torn"
    shutil.rmtree(killed, ignore_errors=True)
    rows = []
    for kind, share in [*(("pt", quarter / 4) for quarter in range(4)), ("json", 0.5)]:
        out = killed / f"{kind}-{share}"
        command, log = bench.command("train", 0, out), killed / f"{kind}-{share}.log"
        killed.mkdir(exist_ok=True)
        require(run(command, log, lambda: at_step(13, lambda: send(signal.SIGKILL, 0))), -signal.SIGKILL, log)
        newest = max((out / "state").glob("*.pt")).with_suffix(f".{kind}")
        os.truncate(newest, int(share * newest.stat().st_size))
        require(run(command, log), 0, log)
        fell_back = log.read_text().count("Going back to the state before it")
        differing = differences(bench.reference("train"), out)
        rows.append(
            {
                "fault": f"newest state's .{kind} cut to {share:.0%}",
                "seen": f"{fell_back} fallback",
                "equal": not differing and fell_back == 1,
            }
        )
        say(str(rows[-1]))
    return rows


def full_disks(bench: Bench) -> list[dict[str, Any]]:
    """A disk that fills while a state is saved: for real, on a small tmpfs, and by a limit on the size of files."""
    return [row for row in (_full_tmpfs(bench), _file_limit(bench)) if row is not None]


def _full_tmpfs(bench: Bench) -> dict[str, Any] | None:
    disk = bench.root / "disk"
    disk.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode:
        say("no tmpfs can be mounted here: left out")
        return None
    try:
        return _disk_case(bench, disk / "run", "tmpfs fills in mid-save", lambda: fill(disk), lambda: (disk / "ballast").unlink())
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def _file_limit(bench: Bench) -> dict[str, Any]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))

    return _disk_case(bench, bench.root / "limited", "files may have 1 MiB", limit, lambda: None)


def _disk_case(bench: Bench, out: Path, fault: str, break_it: Callable[[], None], mend_it: Callable[[], None]) -> dict[str, Any]:
    log = bench.root / f"{out.name}.log"
    for path in (out, log):
        shutil.rmtree(path, ignore_errors=True)
    command = bench.command("train", 0, out)
    code = run(command, log, lambda: at_step(13, break_it))
    whole = [path.name for path in (out / "state").glob("*.json")]
    partial = [path.name for path in out.rglob(".*.tmp")]
    told = log.read_text().strip().splitlines()[-1]
    mend_it()
    require(run(command, log), 0, log)
    fell_back = log.read_text().count("Going back to the state before it")
    equal = not differences(bench.reference("train"), out) and code == 6 and bool(whole) and not partial and not fell_back
    say(f"{fault}: exit code {code}, {len(whole)} whole states, then continued: {'equal' if equal else 'differs'}\n  {told}")
    return {"fault": fault, "seen": f"exit code {code}: {told}", "equal": equal}


def fill(disk: Path) -> None:
    """Write until there is no room but for a part of a state."""
    with (disk / "ballast").open("wb") as file:
        file.truncate(0)
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - (1 << 20))


def run(arguments: Sequence[str], log: Path, prepare_child: Callable[[], None] = lambda: None) -> int:
    """The command line in a forked process; returns its exit code, or minus the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code: object = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        prepare_child()
        from cwbass.cli import main

        sys.argv = ["cwbass", *arguments]
        main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    raise AssertionError


def at_step(number: int, act: Callable[[], None]) -> None:
    """Call ``act`` after the n-th optimiser step of this process, before anything is saved for it."""
    from cwbass.training import stage

    real, taken = stage.fit, [0]

    def fit(*arguments: Any, on_step: Callable[[int], None], **settings: Any) -> None:
        def stepped(step: int) -> None:
            taken[0] += 1
            if taken[0] == number:
                act()
            on_step(step)

        real(*arguments, on_step=stepped, **settings)

    stage.fit = fit


def send(number: int, delay: float) -> None:
    """Signal this process: SIGKILL after a while, in whatever it is doing then."""
    if number == signal.SIGKILL and delay:
        threading.Timer(delay, os.kill, (os.getpid(), number)).start()
    else:
        os.kill(os.getpid(), number)


def require(code: int, expected: int, log: Path) -> None:
    if code != expected:
        sys.exit(f"exit code {code} in place of {expected}; the end of {log}:\n{log.read_text()[-3000:]}")


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs."""
    first, second = fingerprint(one), fingerprint(other)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the timings, and of every part of every checkpoint."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in UNEQUAL]
    found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return found | in_child(lambda: {key: value for path in files if path.suffix == ".pt" for key, value in parts(path).items()})


def parts(path: Path) -> dict[str, str]:
    """SHA-256 of student, teacher, optimiser and history of a checkpoint."""
    from cwbass.training.checkpoint import load_checkpoint

    loaded = load_checkpoint(path)
    state = loaded.method_state
    content: dict[str, Any] = {
        "student": {name: value for name, value in state.items() if name.startswith("student.")},
        "teacher": {name: value for name, value in state.items() if name.startswith("teacher.")},
        "thresholds": {name: value for name, value in state.items() if not name.startswith(("student.", "teacher."))},
        "optimizer": loaded.optimizer,
        "history": loaded.history,
    }
    return {f"{path.name}: {name}": digest(value) for name, value in content.items()}


def digest(value: Any) -> str:
    """SHA-256 of nested tensors and plain values."""
    import torch

    state = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            state.update(
                f"{value.dtype}{list(value.shape)}".encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        elif isinstance(value, Mapping):
            for key, item in value.items():
                state.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            state.update(repr(value).encode())

    add(value)
    return state.hexdigest()


def in_child(work: Callable[[], dict[str, str]]) -> dict[str, str]:
    """A result from a forked process: threads that torch starts here would not survive the next fork."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        code = 1
        try:
            with os.fdopen(writing, "w") as file:
                json.dump(work(), file)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit("a checkpoint cannot be read")
    result: dict[str, str] = json.loads(text)
    return result


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(
            f"| {' | '.join(str(value) if not isinstance(value, bool) else ('yes' if value else 'NO') for value in row.values())} |"
        )
    print(f"\n{sum(row['equal'] for row in rows)} of {len(rows)} equal")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
