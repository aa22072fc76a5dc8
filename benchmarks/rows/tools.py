"""What the command line costs."""

from __future__ import annotations

from benchmarks.harness import Row

ROWS: tuple[Row, ...] = ()
