from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from markupsafe import Markup

from cwbass.reporting.charts import Estimate, Series, bar_chart, heat_strip, interval_chart, line_chart, reliability_diagram
from cwbass.reporting.svg import COLORS, NONE, Plot, dash, format_value, nice_ticks, tag


def parse(drawing: Markup) -> ET.Element:
    """The drawing and its legend as a tree; fails where the markup is not well formed."""
    return ET.fromstring(f"<div>{drawing}</div>")


def of_class(tree: ET.Element, kind: str) -> list[ET.Element]:
    return [element for element in tree.iter() if kind in element.get("class", "").split()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.31, 0.78, [0.2, 0.4, 0.6, 0.8]),
        (200, 4000, [0, 1000, 2000, 3000, 4000]),
        (-0.3, 0.1, [-0.3, -0.2, -0.1, 0, 0.1]),
        (5.0, 5.0, [4, 6, 8, 10]),  # no range: [5, 10], widened to multiples of 2
        (0.0, 0.0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round_numbers_that_enclose_the_data(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == expected


def test_plot_maps_the_corners_of_the_data_to_the_corners_of_the_drawing() -> None:
    plot = Plot(x_low=100, x_high=300, y_low=0, y_high=2)  # 460 x 250 units, margins 46, 22, 16, 38
    assert (plot.x(100), plot.x(300), plot.x(200)) == (46, 438, 242)
    assert (plot.y(0), plot.y(2), plot.y(1)) == (212, 16, 114)


@pytest.mark.parametrize(
    ("value", "percent", "expected"), [(0.7434, True, "74.3%"), (0.01234, False, "0.0123"), (None, True, NONE)]
)
def test_values_are_printed_for_people(value: float | None, percent: bool, expected: str) -> None:
    assert format_value(value, percent=percent) == expected


def test_a_line_runs_through_its_points_and_breaks_where_one_is_missing() -> None:
    drawing = line_chart([Series("miou", [(0, 0.0), (1, 0.5), (2, None), (4, 1.0)])], title="t", x_label="step", percent=True)
    lines = [element.get("points") for element in parse(drawing).iter("polyline")]
    assert lines == ["46,212 144,114", "438,16"]


def test_the_axis_spans_at_least_the_range_asked_for() -> None:
    drawing = line_chart([Series("wait", [(0, 0.0), (1, 0.5)])], title="t", x_label="step", percent=True, y_range=(0, 1))
    assert [element.get("points") for element in parse(drawing).iter("polyline")] == ["46,212 438,114"]


def test_a_share_that_stays_at_the_whole_has_an_axis_from_nothing_to_it() -> None:
    drawing = line_chart([Series("kept", [(0, 1.0), (1, 1.0)])], title="t", x_label="step", percent=True)
    labels = [element.text for element in of_class(parse(drawing), "tick")]
    assert labels[1:6] == ["0%", "25%", "50%", "75%", "100%"]


def test_series_differ_by_colour_and_dash_up_to_32() -> None:
    assert len({(index % COLORS, dash(index)) for index in range(32)}) == 32
    assert len({dash(index) for index in range(4)}) == 4  # the first few differ even without colour


def test_long_series_have_no_dots() -> None:
    def dots(length: int) -> int:
        points = [(float(x), 0.5) for x in range(length)]
        return len(of_class(parse(line_chart([Series("a", points)], title="t", x_label="x", percent=True)), "dot"))

    assert (dots(60), dots(61)) == (60, 0)


def test_bars_are_as_long_as_their_fraction_and_absent_classes_say_so() -> None:
    tree = parse(bar_chart(["sky", "tram"], [("ours", [0.5, None]), ("theirs", [0.25, 0.0])], title="IoU"))
    drawing = next(tree.iter("svg"))
    widths = [float(bar.get("width", "")) for bar in of_class(drawing, "bar")]
    assert widths == [146.0, 73.0, 0.5]  # 292 units are 100 %; an IoU of zero still shows
    assert "absent" in [element.text for element in drawing.iter("text")]


def test_what_two_seeds_cannot_tell_leaves_room_for_what_they_did() -> None:
    drawing = interval_chart([Estimate("a", 0.5, [0.25, 0.75], (-2.7, 3.7))], title="t", x_label="x", scale=(0, 1))
    tree = next(parse(drawing).iter("svg"))
    # The axis goes from 20 to 80 %, over 318 units from 120 on: 5.3 a point.
    assert [ring.get("cx") for ring in of_class(tree, "ring")] == ["146.5", "411.5"]
    assert [dot.get("cx") for dot in of_class(tree, "dot")] == ["279"]
    bar, left, right = of_class(tree, "interval")
    assert (bar.get("x1"), bar.get("x2")) == ("120", "438")
    assert (left.get("d"), right.get("d")) == ("M125 22l-5 3l5 3", "M433 22l5 3l-5 3")
    assert "a: 50.0, over seeds -270.0 to 370.0" in drawing


def test_an_interval_ends_with_the_scale_of_the_score() -> None:
    drawing = interval_chart([Estimate("a", 0.02, [0.01, 0.02, 0.03], (-0.005, 0.045))], title="t", x_label="x", scale=(0, 1))
    tree = next(parse(drawing).iter("svg"))
    bar, left = of_class(tree, "interval")  # from 0 to 6 %: 53 units a point; no arrow at the right
    assert (bar.get("x1"), bar.get("x2"), left.get("d")) == ("120", "358.5", "M125 22l-5 3l5 3")
    assert not of_class(tree, "marker")


def test_a_difference_has_both_intervals_and_a_line_at_zero() -> None:
    rows = [Estimate("a", 0.25, [0.2, 0.2, 0.35], (0.1, 0.4), (0.2, 0.3))]
    drawing = interval_chart(rows, title="t", x_label="x", scale=(-1, 1))
    tree = next(parse(drawing).iter("svg"))
    assert [(bar.get("class"), bar.get("x1"), bar.get("x2")) for bar in of_class(tree, "interval")] == [
        ("interval thick", "279", "358.5"),  # from 0 to 40 points: 7.95 units each
        ("interval", "199.5", "438"),
    ]
    assert [line.get("x1") for line in of_class(tree, "marker")] == ["120"]
    assert "95 % over test images" in drawing


def test_reliability_ignores_empty_bins_and_names_the_gap() -> None:
    drawing = reliability_diagram([None, 0.6, 0.9], [None, 0.5, 0.8], [0, 30, 70], title="Reliability")
    tree = parse(drawing)
    assert "mean gap of confidence and accuracy 10.0 points" in next(tree.iter("svg")).get("aria-label", "")
    (line,) = tree.iter("polyline")
    assert line.get("points") == "281.2,114 398.8,55.2"  # x: 46 + 0.6 * 392, y: 212 - 0.5 * 196


def test_heat_strip_has_a_row_for_each_class() -> None:
    names = [f"class {index}" for index in range(150)]
    drawing = heat_strip(names, [100, 200], [[0.1, None]] * 150, title="Retention", x_label="step")
    assert len(of_class(parse(drawing), "label")) == 150
    assert "class 7: 10.0% at the end" in drawing
    assert len(drawing) < 40_000  # the cells are one small picture


def test_long_names_that_differ_at_their_end_stay_apart_and_are_shown_in_full_when_pointed_at() -> None:
    names = ["road_marking_solid_white", "road_marking_solid_yellow"]
    rows = [Estimate(name, 0.5, [0.5], None) for name in names]
    for drawing in (
        bar_chart(names, [("ours", [0.5, 0.5])], title="IoU"),
        interval_chart(rows, title="mIoU", x_label="mIoU", scale=(0, 1)),
        heat_strip(names, [0, 1], [[0.5, 0.6]] * 2, title="Kept", x_label="step"),
    ):
        labels = of_class(parse(drawing), "label")
        assert [label.text for label in labels] == ["road_mark…id_white", "road_mark…d_yellow"]
        assert [(label.findtext("title") or "")[: len(name)] for label, name in zip(labels, names, strict=True)] == names


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"/><image href="x"/>', "a & b"])
def test_names_are_escaped_in_every_chart(name: str) -> None:
    points = [(0.0, 0.5), (1.0, 0.6)]
    drawings = [
        line_chart([Series(name, points)], title=name, x_label=name, percent=True, marker=(0.5, name)),
        bar_chart([name], [(name, [0.5])], title=name),
        interval_chart([Estimate(name, 0.5, [0.5], None)], title=name, x_label=name, scale=(0, 1)),
        reliability_diagram([0.5], [0.5], [1], title=name),
        heat_strip([name], [0, 1], [[0.5, 0.6]], title=name, x_label=name),
    ]
    for drawing in drawings:
        tree = parse(drawing)  # well formed: nothing broke out of an attribute or a text
        assert not list(tree.iter("script"))
        assert all(image.get("href", "").startswith("data:image/png") for image in tree.iter("image"))
        assert name in next(tree.iter("svg")).get("aria-label", "")


def test_charts_carry_no_ids_and_no_addresses() -> None:
    drawing = line_chart([Series("a", [(0, 0.1), (1, 0.2)])], title="t", x_label="x", percent=False)
    assert not re.search(r"\sid=|url\(|http", drawing)


def test_tags_keep_markup_and_escape_text() -> None:
    assert tag("b", "1 < 2", class_="x", stroke_width=1 / 3) == '<b class="x" stroke-width="0.333333">1 &lt; 2</b>'
    assert tag("g", tag("b", "x")) == "<g><b>x</b></g>"


def test_the_last_number_of_a_series_skips_gaps() -> None:
    assert Series("a", [(0, 0.1), (1, 0.2), (2, None)]).last == 0.2
    assert Series("a", [(0, None)]).last is None
