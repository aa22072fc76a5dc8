"""What the steps say of themselves. The base class listens to nothing: it is the default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import torch

    from cwbass.training.loop import EpochRecord

T = TypeVar("T")


class Telemetry:
    """Told what happens; never asks for a tensor, never raises, never changes what it is told of."""

    def describe_run(self, *, data_version: str, params: str, model: str) -> None:
        """What is run.

        Args:
            data_version: Hash of the split.
            params: Resolved parameters, as text.
            model: Architecture and encoder.
        """

    def start_phase(
        self, phase: str, *, epochs: int, class_names: Sequence[str], labeled_classes: Sequence[str], device: torch.device
    ) -> None:
        """Training begins: the warm-up, the baseline, the method, or a retraining.

        Args:
            phase: Its name.
            epochs: How many there will be.
            class_names: Of the dataset, by index.
            labeled_classes: Those that the labelled images show.
            device: Where it trains.
        """

    def watch(self, batches: Iterable[T], kind: str, images: int) -> Iterable[T]:
        """The same batches, timed.

        Args:
            batches: What the loop will iterate over.
            kind: ``labeled`` or ``unlabeled``.
            images: In a batch.
        """
        return batches

    def step_done(self) -> None:
        """An optimiser step has been taken, or skipped."""

    def step_skipped(self, step: int) -> None:
        """Loss or gradient of a step was not finite."""

    def collapsed(self, signs: Sequence[str]) -> None:
        """The collapse guard has acted.

        Args:
            signs: What it saw, of :data:`cwbass.telemetry.metrics.SIGNS`.
        """

    def epoch_done(self, record: EpochRecord, row: Mapping[str, Any], learning_rates: Mapping[str, float]) -> None:
        """An epoch is measured and saved.

        Args:
            record: What the loop saw.
            row: Of the history, with what the selection slice says.
            learning_rates: Group of parameters -> rate of the last step.
        """

    def saving(self, path: Path) -> AbstractContextManager[None]:
        """Around the writing of a checkpoint; what it raises passes through."""
        return nullcontext()

    def saving_state(self) -> AbstractContextManager[None]:
        """Around the writing of a state, from which a run that was killed goes on; likewise, and maybe in another thread."""
        return nullcontext()

    def checkpoint_damaged(self) -> None:
        """A checkpoint could not be read, and an older one is used."""

    def resumed(self) -> None:
        """Training goes on from a checkpoint of an earlier process."""

    def interrupted(self, reason: str) -> None:
        """Training stops because it was asked to.

        Args:
            reason: ``SIGTERM``, ``SIGINT`` or ``other``.
        """

    def scored(self, metrics: Mapping[str, Any]) -> None:
        """The test split was scored.

        Args:
            metrics: Content of metrics.json.
        """

    def registry_operation(self, operation: str) -> AbstractContextManager[None]:
        """Around what is asked of the registry; what it raises passes through.

        Args:
            operation: ``register`` or ``promote``.
        """
        return nullcontext()

    def uploaded(self, size: int) -> None:
        """The registry has taken files of ``size`` bytes."""


SILENT: Final = Telemetry()
