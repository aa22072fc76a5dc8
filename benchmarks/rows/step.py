"""What a training step costs beside the network's passes, and against a plain implementation."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import repeat

from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.cases import CPU, R50, Case, bfloat16, lite0, network_passes, published, whole_step
from benchmarks.harness import Pair, Row, Samples, at_least, at_most, time_in_turn
from benchmarks.peak import peaks_of_steps
from benchmarks.plain import plain_step
from benchmarks.processes import steps_of
from cwbass.telemetry.metrics import Exposed, Metrics
from cwbass.telemetry.recorder import Recorder

TOLD = 2000  # steps that are told in a repeat


def _against_passes(case: Callable[[], Case]) -> Callable[[int], Pair]:
    def measure(repeats: int) -> Pair:
        method = case().method()
        return Pair(whole_step(case(), method), network_passes(case(), method), note=case().name)

    return measure


def _against_plain(case: Callable[[], Case], plain: Callable[[], Case]) -> Callable[[int], Pair]:
    def measure(repeats: int) -> Pair:
        ours = published(case())
        return Pair(whole_step(ours, ours.method()), plain_step(published(plain())), note=ours.name)

    return measure


def _memory(words: str, *, ours: str = "ours") -> Callable[[int], Samples]:
    def measure(repeats: int) -> Samples:
        peaks = peaks_of_steps(*[f"{ours} {words}", f"plain {words.split()[0]}"] * repeats)
        return Samples(peaks[::2], peaks[1::2], unit="MB")

    return measure


def _telemetry(repeats: int) -> Samples:
    metrics = Metrics(CollectorRegistry())
    recorder = Recorder(metrics, stage="train")
    names = [f"class{index}" for index in range(21)]
    recorder.start_phase("train", epochs=1, class_names=names, labeled_classes=names, device=CPU)
    labeled, unlabeled = (iter(recorder.watch(repeat(None), kind, 4)) for kind in ("labeled", "unlabeled"))
    shown = CollectorRegistry()
    shown.register(Exposed(metrics.registry))

    def tell() -> None:
        next(labeled)
        next(unlabeled)
        recorder.step_done()

    step = whole_step(lite0(), lite0().method())
    samples = time_in_turn(Pair(lambda: [tell() for _ in range(TOLD)], step), repeats)
    scrape = statistics.median(time_in_turn(Pair(lambda: generate_latest(shown), tell), 20).ours)
    return Samples(
        [seconds / TOLD for seconds in samples.ours],
        samples.against,
        note=f"a scrape takes {1e3 * scrape:.1f} ms: of 15 s between two, {100 * scrape / 15:.3f} %",
    )


def _processes(repeats: int) -> Samples:
    found = [(steps_of(2), steps_of(1)) for _ in range(repeats)]
    two, _ = found[-1]
    return Samples(
        [two["step_seconds"] for two, _ in found],
        [one["step_seconds"] for _, one in found],
        note=f"{100 * two['waiting']:.0f} % of a step of two is waiting for {two['messages']:.0f} messages, or for the slower process",
    )


def _r50() -> Case:
    return R50


PASSES = "student forward and backward and teacher forward of the same network"
PLAIN = "the published step written down plainly, float32"

DEFAULT = "peak memory of a step of the default recipe, float32"

ROWS: tuple[Row, ...] = (
    Row("step.r50", "training step", PASSES, at_most(1.05), _against_passes(_r50), repeats=7),
    Row("step.r50.bf16", "training step", PASSES, at_most(1.05), _against_passes(lambda: bfloat16(R50)), repeats=9),
    Row("step.lite0", "training step", PASSES, at_most(1.05), _against_passes(lite0), repeats=25),
    Row("step.plain.r50", "training step in float32", PLAIN, at_least(1.6), _against_plain(_r50, _r50), repeats=5),
    Row(
        "step.plain.r50.bf16",
        "training step, precision: auto",
        PLAIN,
        at_least(1.6),
        _against_plain(lambda: bfloat16(R50), _r50),
        repeats=5,
    ),
    Row("step.plain.lite0", "training step in float32", PLAIN, at_least(1.6), _against_plain(lite0, lite0), repeats=21),
    Row("step.memory.r50", "peak memory of a step in float32", PLAIN, at_most(0.7), _memory("r50"), repeats=1),
    Row(
        "step.memory.r50.bf16",
        "peak memory of a step, precision: auto",
        PLAIN,
        at_most(0.7),
        _memory("r50 bfloat16"),
        repeats=1,
    ),
    Row("step.telemetry", "what a step tells Prometheus", "the step", at_most(0.001), _telemetry),
    Row("step.processes", "step of 2 processes on the same cores", "a step of 1", None, _processes, repeats=2),
    Row("step.memory.lite0", "peak memory of a step in float32", PLAIN, at_most(0.7), _memory("lite0"), repeats=2),
    Row("step.memory.default.r50", DEFAULT, PLAIN, at_most(0.7), _memory("r50", ours="default"), repeats=1),
    Row("step.memory.default.lite0", DEFAULT, PLAIN, at_most(0.7), _memory("lite0", ours="default"), repeats=2),
)
