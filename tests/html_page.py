"""A page that was written, as its tags and texts."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"img", "meta", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags with their attributes, texts, headings; fails on tags that do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += f" {data.strip()}"
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)
