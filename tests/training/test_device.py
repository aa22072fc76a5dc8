from __future__ import annotations

import copy
import logging
import os
import shutil
import sys
from collections.abc import Callable

import pytest
import torch

from cwbass.errors import ParamsError
from cwbass.models.base import SegmentationNet
from cwbass.training.device import compile_networks_, gpu_memory, resolve_device, resolve_precision, scoring_device, set_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def see_gpu(monkeypatch: pytest.MonkeyPatch, seen: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)


def test_cuda_that_is_not_there_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpu(monkeypatch, False)
    with pytest.raises(ParamsError, match=r"train\.device is cuda, but torch sees no GPU.*or use device: auto"):
        resolve_device("cuda")


def test_a_full_gpu_is_an_error_that_says_what_to_lower() -> None:
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB"
    with (
        pytest.raises(ParamsError, match=rf"memory is full \({said}\)\. Lower train\.batch_labeled.*train\.accumulate"),
        gpu_memory(),
    ):
        raise torch.OutOfMemoryError(said)


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


def test_float16_is_for_gpus_and_on_a_cpu_float32_stands_in_for_it(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_precision("float16", CUDA) is torch.float16
    assert not caplog.text
    assert resolve_precision("float16", CPU) is None
    assert "train.precision is float16, which is for GPUs: computing in float32 on the CPU" in caplog.text


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


def test_without_a_compiler_networks_stay_as_they_are_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_net: type[SegmentationNet]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    net = tiny_net()
    assert compile_networks_(net) is False
    assert "no C++ compiler (no-such-compiler): running without. Install g++" in caplog.text
    assert "encode" not in vars(net)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler: apt-get install g++")
def test_compiled_networks_give_the_same_loss_and_gradient_under_the_same_names(normed_net: type[SegmentationNet]) -> None:
    torch.manual_seed(0)
    plain = normed_net()
    fast = copy.deepcopy(plain)
    assert compile_networks_(fast) is True
    image = torch.rand(2, 3, 8, 8) * 255
    for net in (plain, fast):
        net(image).square().mean().backward()
    assert fast.state_dict().keys() == plain.state_dict().keys()
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for one, other in zip(fast.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    follower = copy.deepcopy(fast)  # as a teacher is made of a student
    torch.testing.assert_close(follower.eval()(image), fast.eval()(image))


@pytest.mark.parametrize("use", [lambda: set_kernels(CUDA), lambda: scoring_device("cpu", "float32")])
def test_float32_is_float32_in_convolutions_of_a_gpu_too(use: Callable[[], object]) -> None:
    torch.backends.cudnn.allow_tf32 = True  # as torch has it
    use()
    assert not torch.backends.cudnn.allow_tf32


def test_a_copy_of_a_compiled_network_runs_its_own_weights(
    monkeypatch: pytest.MonkeyPatch, tiny_net: type[SegmentationNet]
) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    net = tiny_net()
    assert compile_networks_(net) is True
    follower = copy.deepcopy(net)
    for parameter in follower.parameters():
        parameter.data.zero_()
    assert follower(torch.ones(1, 3, 6, 6)).abs().max() == 0


def test_deterministic_kernels_are_for_gpus_and_warn_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        set_kernels(CPU, deterministic=True)
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        set_kernels(CUDA, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        set_kernels(CUDA)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
