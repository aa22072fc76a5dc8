"""Building blocks of the charts: escaped tags, axes, ticks, legends.

Colours are CSS classes of the page, so that one drawing serves light, dark and print. No
element has an id: two charts in a page cannot clash, and nothing depends on the page's address.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 460, 250  # user units; the page scales them
LEFT, RIGHT, TOP, BOTTOM = 46, 22, 16, 38
NONE = "\N{EN DASH}"  # printed where there is no number
COLORS = 8  # that stay apart for colour-blind readers
DASHES = ("", "7 4", "2 3", "10 3 2 3")


def tag(name: str, content: str = "", **attributes: object) -> Markup:
    """An element; text and attributes are escaped, unless ``content`` is already Markup.

    ``class_`` stands for ``class`` and ``stroke_width`` for ``stroke-width``; floats keep two decimals.
    """
    pairs = (
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), f"{value:.6g}" if isinstance(value, float) else value)
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("").join(pairs), content)


def join(parts: Sequence[Markup]) -> Markup:
    """One piece of markup from many."""
    return Markup("").join(parts)


def text(content: str, x: float, y: float, *, kind: str = "tick", anchor: str = "start") -> Markup:
    """Text at a point; ``anchor`` is start, middle or end."""
    return tag("text", content, class_=kind, x=round(x, 1), y=round(y, 1), text_anchor=anchor)


def svg(title: str, summary: str, parts: Sequence[Markup], *, height: float = HEIGHT) -> Markup:
    """The drawing; ``title`` and ``summary`` are read out by screen readers."""
    label = f"{title}. {summary}."
    return tag("svg", join(parts), class_="chart", viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)


def legend(entries: Sequence[tuple[Markup, str]]) -> Markup:
    """A list of keys (drawn in 26 x 8 units) and names."""
    items = [
        tag("li", tag("svg", key, class_="swatch", viewBox="0 0 26 8", aria_hidden="true") + tag("span", name))
        for key, name in entries
    ]
    return tag("ul", join(items), class_="legend")


def dash(index: int) -> str:
    """Dash pattern of a series, shifted each time round the colours: 32 series differ."""
    return DASHES[(index + index // COLORS) % len(DASHES)]


def clip(content: str, length: int) -> str:
    """Shorten a label that would run out of the drawing, in its middle: names often differ in their last letters alone."""
    if len(content) <= length:
        return content
    end = (length - 1) // 2
    return f"{content[: length - 1 - end]}…{content[-end:]}"


def format_value(value: float | None, *, percent: bool) -> str:
    """As read by people: a fraction in per cent, other numbers with three digits."""
    if value is None:
        return NONE
    return f"{value * 100:.1f}%" if percent else f"{value:.3g}"


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose [low, high], about five of them, 1, 2, 2.5 or 5 times a power of ten apart."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class Plot:
    """From data to user units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """From the left edge of the drawing."""
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1.0)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        """From its top: larger values stand higher."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)

    def axes(
        self, x_ticks: Sequence[float], y_ticks: Sequence[float], *, x_percent: bool, y_percent: bool, x_label: str
    ) -> Markup:
        """Horizontal grid lines, numbers on both axes, and the name of x."""
        parts = [text(x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 7, anchor="middle")]
        for tick in y_ticks:
            parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=self.y(tick), y2=self.y(tick)))
            parts.append(text(_tick(tick, y_percent), LEFT - 6, self.y(tick) + 4, anchor="end"))
        for tick in x_ticks:
            parts.append(text(_tick(tick, x_percent), self.x(tick), HEIGHT - BOTTOM + 15, anchor="middle"))
        return join(parts)


def _tick(value: float, percent: bool) -> str:
    return f"{value * 100:g}%" if percent else f"{value:,g}"
