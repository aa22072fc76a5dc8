"""Where training runs and in which precision."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from cwbass.errors import ParamsError, counted, one_line
from cwbass.models.base import SegmentationNet

M = TypeVar("M", bound=nn.Module)
logger = logging.getLogger(__name__)


def resolve_device(name: str) -> torch.device:
    """The device of ``train.device``: auto, cpu or cuda.

    Raises:
        ParamsError: cuda is asked for and none is seen; found within seconds, not after hours.
    """
    seen = torch.cuda.is_available()
    if name == "cuda" and not seen:
        raise ParamsError(
            "train.device is cuda, but torch sees no GPU. Check the driver and the pod's nvidia.com/gpu limit, or use device: auto."
        )
    if name == "auto" and not seen:
        logger.info("no CUDA device: running on the CPU with %s", counted(torch.get_num_threads(), "thread"))
    return torch.device("cuda" if seen and name != "cpu" else "cpu")


def set_kernels(device: torch.device, *, deterministic: bool = False) -> None:
    """How torch computes in this process from now on.

    float32 is that in convolutions of a GPU too, whose factors torch would round to ten bits (TF32).

    Args:
        device: Where.
        deterministic: ``train.deterministic``: whether kernels add in the same order each time. A CPU's do so anyway, and torch
            would fill every new tensor for nothing. What has no such kernel warns once and runs.
    """
    torch.backends.cudnn.allow_tf32 = False
    on = deterministic and device.type == "cuda"
    if on:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if on != torch.are_deterministic_algorithms_enabled():  # the call takes seconds: torch loads its compiler for it
        torch.use_deterministic_algorithms(on, warn_only=True)


@contextmanager
def gpu_memory() -> Iterator[None]:
    """Around training: what to do where the GPU's memory does not suffice.

    Raises:
        ParamsError: It does not; the same training would ask for as much again.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ParamsError(
            f"the GPU's memory is full ({one_line(error, 200)}). Lower train.batch_labeled and train.batch_unlabeled, with a higher "
            "train.accumulate in their place, or augment.crop_size; train.precision: bfloat16 takes about half."
        ) from error


def place(module: M, device: torch.device) -> M:
    """Move to a device, with convolutions in channels_last: their fast layout on CPU and GPU."""
    module.to(device)
    module.to(memory_format=torch.channels_last)
    return module


def compile_networks_(module: nn.Module) -> bool:
    """Let torch.compile make kernels for all networks of a method when they first run; parameters and their names stay as they are.

    Returns:
        Whether; without a C++ compiler nothing is changed, and a warning says so.
    """
    named = os.environ.get("CXX", "c++")
    if shutil.which(named) is None:
        logger.warning(
            "train.compile is true, but there is no C++ compiler (%s): running without. Install g++, or name one in CXX.", named
        )
        return False
    for each in module.modules():
        if isinstance(each, SegmentationNet):
            each.compile(dynamic=False)
    return True


def resolve_precision(name: str, device: torch.device) -> torch.dtype | None:
    """Autocast type of ``train.precision``: torch.bfloat16, torch.float16, or None for float32.

    ``auto`` takes bfloat16 where the hardware multiplies it; emulated, it is slower than float32. On a CPU ``float16``
    is float32, and says so: few CPUs multiply it, and a model that was trained in it must be scored anywhere.
    """
    if name == "bfloat16":
        return torch.bfloat16
    if name == "float32":
        return None
    if name == "float16":
        if device.type != "cuda":
            logger.warning("train.precision is float16, which is for GPUs: computing in float32 on the %s", device.type.upper())
            return None
        return torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_multiplies_bfloat16() else None


def scoring_device(name: str, precision: str) -> tuple[torch.device, torch.dtype | None]:
    """Where a checkpoint is scored, and its autocast type there.

    Args:
        name: auto, cpu or cuda.
        precision: ``train.precision`` of the checkpoint; it holds where the device is not named.
    """
    device = resolve_device(name)
    set_kernels(device)
    return device, resolve_precision(precision if name == "auto" else "auto", device)


def _cpu_multiplies_bfloat16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
