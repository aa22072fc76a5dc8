"""Loader processes that die, raise, or are signalled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from dying import Fatal
from torch import Tensor

from cwbass.data.streams import loader_failures, make_loader
from cwbass.errors import DataError, ServiceError


def batches(how: str) -> Iterator[Tensor]:
    return iter(make_loader(Fatal(how), torch.stack, start=0, stop=12, batch_size=1, workers=1, pin_memory=False))


def test_a_loader_process_leaves_signals_to_the_main_one_and_its_death_is_told_with_what_to_do() -> None:
    loader = batches("killed")
    worker = int(next(loader)[0, 1])
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever presses Ctrl-C signals the whole group
        os.kill(worker, number)
    came = []
    message = r"a loader process died.*want of memory: lower train\.workers.*goes on"
    with pytest.raises(ServiceError, match=message) as caught, loader_failures():
        for batch in loader:
            came.append(int(batch[0, 0]))
    loader._shutdown_workers()  # type: ignore[attr-defined]  # or torch tells the next test of this death
    assert caught.value.exit_code == 6
    assert came == list(range(1, len(came) + 1)) and len(came) >= 3


def test_an_error_in_a_loader_process_is_the_error_of_the_run_without_a_traceback() -> None:
    with pytest.raises(DataError) as caught, loader_failures():
        list(batches("raises"))
    assert str(caught.value) == "images/a.png is torn: 3 bytes. Copy it again."


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), loader_failures():
        raise RuntimeError("CUDA out of memory")
