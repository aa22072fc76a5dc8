from __future__ import annotations

import logging

import pytest
import torch

from cwbass.errors import ParamsError
from cwbass.training.device import resolve_device, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def see_gpu(monkeypatch: pytest.MonkeyPatch, seen: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)


def test_cuda_that_is_not_there_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpu(monkeypatch, False)
    with pytest.raises(ParamsError, match=r"train\.device is cuda, but torch sees no GPU.*or use device: auto"):
        resolve_device("cuda")


def test_auto_takes_a_gpu_where_there_is_one_and_says_when_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    see_gpu(monkeypatch, True)
    assert [resolve_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    see_gpu(monkeypatch, False)
    with caplog.at_level(logging.INFO):
        assert resolve_device("auto") == CPU
    assert "no CUDA device: running on the CPU" in caplog.text


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_precision_that_is_named_is_taken(device: torch.device) -> None:
    assert resolve_precision("bfloat16", device) is torch.bfloat16
    assert resolve_precision("float32", device) is None


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_takes_bfloat16_where_the_gpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert resolve_precision("auto", CUDA) is expected


@pytest.mark.parametrize(("multiplies", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_on_a_cpu_asks_the_processor(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr("cwbass.training.device._cpu_multiplies_bfloat16", lambda: multiplies)
    assert resolve_precision("auto", CPU) is expected
