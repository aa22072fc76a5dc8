"""Markdown from values that may hold anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def markdown_text(value: object) -> str:
    """One line of plain text: nothing in it is markup, a table's border or a line break."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(value).split()))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of plain text."""
    head, *body = ([markdown_text(cell) for cell in row] for row in (header, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))
