"""Trainings that end as if their process was killed."""

from __future__ import annotations

from typing import Any

import pytest

from cwbass.training import stage as stage_module
from cwbass.training.resume import Keeper


class Killed(BaseException):
    """The process is gone: nobody catches it."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ends the process, as far as the step can tell, after the n-th optimiser step."""

    after_step = Keeper.after_step

    def and_wait(self: Keeper, *arguments: Any, **settings: Any) -> None:
        after_step(self, *arguments, **settings)
        self._wait()  # a thread of this process would outlive the one that is said to be gone

    def at(number: int) -> None:
        monkeypatch.setattr(Keeper, "after_step", and_wait)
        real, taken = stage_module.fit, [0]

        def fit(*arguments: Any, on_step: Any, **settings: Any) -> None:
            def stepped(step: int) -> None:
                on_step(step)
                taken[0] += 1
                if taken[0] == number:
                    monkeypatch.setattr(stage_module, "fit", real)
                    raise Killed

            real(*arguments, on_step=stepped, **settings)

        monkeypatch.setattr(stage_module, "fit", fit)

    return at
