"""Where training stands: a bar with time to go on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from cwbass.progress import new_bar
from cwbass.training.loop import Schedule

logger = logging.getLogger(__name__)


class ProgressLine:
    """Tells people; decides nothing.

    Args:
        stage: Name to show.
        schedule: Which steps will be taken.
    """

    def __init__(self, stage: str, schedule: Schedule) -> None:
        self.stage, self.schedule = stage, schedule
        self.bar = new_bar()
        if self.bar is not None:
            self.task = self.bar.add_task(
                stage, total=schedule.stop - schedule.stage_start, completed=schedule.start - schedule.stage_start
            )
            self.bar.start()

    def step(self, taken: int) -> None:
        """Called after each step with the number of steps taken."""
        if self.bar is not None:
            self.bar.update(self.task, completed=taken - self.schedule.stage_start)
            if taken == self.schedule.stop:
                self.bar.stop()

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Called with each row of the history."""
        left = (self.schedule.stop - row["step"]) * row["step_seconds"]
        parts = [f"step {row['step']}/{self.schedule.stop}"]
        if "loss" in row:  # an epoch may have skipped every step
            parts.append(f"loss {row['loss']:.3f}")
        for key, name in (("selection_miou", "selection mIoU"), ("retention", "kept"), ("precision", "precision")):
            if row.get(key) is not None:
                parts.append(f"{name} {100 * row[key]:.1f} %")
        parts.append(f"{1000 * row['step_seconds']:.0f} ms/step ({100 * row['data_wait']:.0f} % waiting for data)")
        parts.append(f"{left / 60:.1f} min left")
        logger.info("%s: %s", self.stage, ", ".join(parts))
