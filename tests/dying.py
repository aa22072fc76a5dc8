"""Samples that are the death of a loader process; in a module of their own, which that process imports."""

from __future__ import annotations

import os
import resource
import signal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cwbass.errors import DataError


class Fatal(Dataset[Tensor]):
    """At position 10: kill the process that asks, leave it no room in shared memory, or raise."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __getitem__(self, position: int) -> Tensor:
        if position == 10 and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if position == 10 and self.how == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        if position == 10 and self.how == "raises":
            raise DataError("images/a.png is torn: 3 bytes. Copy it again.")
        return torch.tensor([position, os.getpid()])
