"""What a training step costs beside the network's passes, and against a plain implementation."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.cases import R50, Case, bfloat16, lite0, network_passes, published, whole_step
from benchmarks.harness import Pair, Row, Samples, at_least, at_most
from benchmarks.memory import peak_of_step
from benchmarks.plain import plain_step


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


def _memory(name: str, *settings: str) -> Callable[[int], Samples]:
    def measure(repeats: int) -> Samples:
        plain = [peak_of_step("plain", name) for _ in range(repeats)]
        return Samples([peak_of_step("ours", name, *settings) for _ in range(repeats)], plain, unit="MB")

    return measure


def _r50() -> Case:
    return R50


PASSES = "student forward and backward and teacher forward of the same network"
PLAIN = "the published step written down plainly, float32"

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
        _memory("r50", "bfloat16"),
        repeats=1,
    ),
    Row("step.memory.lite0", "peak memory of a step in float32", PLAIN, at_most(0.7), _memory("lite0"), repeats=2),
)
