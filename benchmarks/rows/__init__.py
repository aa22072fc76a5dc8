"""The rows of ``python -m benchmarks``, a module a part of the project."""

from __future__ import annotations

from benchmarks.harness import Row


def all_rows() -> list[Row]:
    """Every row, in the order of the table."""
    from benchmarks.rows import data, evaluation, losses, step, tools

    return [row for module in (step, losses, data, evaluation, tools) for row in module.ROWS]
