"""Standard output and error: what a command does, and its exit code, do not depend on who listens."""

from __future__ import annotations

import atexit
import io
import sys
from typing import Any


class _Stream(io.FileIO):
    """A file that takes what nobody reads any more and, where it is ``lenient``, whatever cannot be written."""

    lenient = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self.lenient or isinstance(error, BrokenPipeError):
                return memoryview(data).nbytes
            raise


def outlive_readers() -> None:
    """From now on, a ``| head`` that has seen enough, a ``| tee`` that Ctrl-C has ended, or a log on a full disk is no error.

    A result that a full disk does not take is one, when it is printed. Python writes the rest of it once more at its end, and
    would answer 120 where that fails again.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):  # closed, or of a test, which collects what is said
            continue
        file = _Stream(stream.fileno(), "wb", closefd=False)
        file.lenient = name == "stderr"
        atexit.register(setattr, file, "lenient", True)
        text = io.TextIOWrapper(io.BufferedWriter(file), stream.encoding, stream.errors, line_buffering=True)
        setattr(sys, name, text)
