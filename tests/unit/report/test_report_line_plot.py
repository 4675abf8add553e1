"""What is drawn is what was recorded: read back from the drawing by its own ticks."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from delaygrad.report.axis import Axis, fit_axis
from delaygrad.report.line_plot import Line, line_plot
from delaygrad.report.page import Svg

X = fit_axis("epoch", [0.0, 12.0], tight=True)
Y = fit_axis("loss", [0.0, 2.0])


def drawing(svg: Svg) -> Element:
    return ElementTree.fromstring(svg.markup)


def paths(element: Element, kind: str) -> list[str]:
    return [p.get("d", "") for p in element.iter("path") if p.get("class", "").startswith(kind)]


def read_back(element: Element, path: str, log: bool = False) -> list[tuple[float, float]]:
    """Turn a path into data with nothing but the numbers at the ticks and where they stand."""
    ticks = [t for t in element.iter("text") if re.fullmatch(r"[-\d.e+]+", t.text or "")]
    across = [
        (float(t.get("x", "")), float(t.text or "")) for t in ticks if t.get("class") != "end"
    ]
    up = [
        (float(t.get("y", "")) - 4, float(t.text or "")) for t in ticks if t.get("class") == "end"
    ]
    if log:
        up = [(place, math.log(value)) for place, value in up]

    def data(place: float, known: list[tuple[float, float]]) -> float:
        (p0, v0), (p1, v1) = known[0], known[-1]
        return v0 + (place - p0) * (v1 - v0) / (p1 - p0)

    points = [tuple(map(float, p.split())) for p in re.split("[ML]", path)[1:]]
    values = [(data(x, across), data(y, up)) for x, y in points]
    return [(x, math.exp(y) if log else y) for x, y in values]


@pytest.mark.parametrize("log", [False, True])
def test_points_lie_where_the_data_says(log: bool) -> None:
    points = tuple((0.5 * i, 2.0 * math.exp(-0.2 * i)) for i in range(1, 25))
    y = fit_axis("loss", [value for _, value in points], log=log)
    element = drawing(line_plot([Line(label="a", points=points, series=0)], X, y, "d"))
    (path,) = paths(element, "line")
    found = read_back(element, path, log)
    assert len(found) == len(points)
    for (x, value), (want_x, want) in zip(found, points, strict=True):
        assert x == pytest.approx(want_x, abs=0.01)
        assert value == pytest.approx(want, abs=0.01)


def test_what_is_not_finite_interrupts_the_line() -> None:
    points = ((1.0, 1.0), (2.0, math.nan), (3.0, 0.5), (4.0, 0.4), (5.0, math.inf))
    element = drawing(line_plot([Line(label="a", points=points, series=0)], X, Y, "d"))
    (path,) = paths(element, "line")
    assert re.sub(r"[^ML]", "", path) == "MML"
    nothing = line_plot([Line(label="a", points=((1.0, math.nan),), series=0)], X, Y, "d")
    assert paths(drawing(nothing), "line") == []


def test_points_are_shown_with_their_values() -> None:
    line = Line(label="a <b>", points=((1.0, 1.0), (2.0, 0.5)), series=1, marked=True)
    element = drawing(line_plot([line], X, Y, "d"))
    titles = [title.text for title in element.iter("title")]
    assert titles == ["a <b>", "a <b>: 1 at 1 (epoch)", "a <b>: 0.5 at 2 (epoch)"]
    assert len(paths(element, "point")) == 2


def test_a_lone_point_is_seen_and_a_broken_line_crossed_out() -> None:
    lone = Line(label="a", points=((1.0, 1.0),), series=0, broken="diverged at iteration 7")
    element = drawing(line_plot([lone], X, Y, "d"))
    assert len(list(element.iter("circle"))) == 1 and len(paths(element, "cross")) == 1
    assert "a: diverged at iteration 7" in [title.text for title in element.iter("title")]


def test_faint_lines_lie_behind_and_series_have_classes() -> None:
    lines = [
        Line(label="mean", points=((1.0, 1.0), (2.0, 1.0)), series=2),
        Line(label="run", points=((1.0, 1.1), (2.0, 0.9)), series=10, faint=True),
    ]
    element = drawing(line_plot(lines, X, Y, "two <lines>"))
    assert [p.get("class") for p in element.iter("path") if "line" in p.get("class", "")] == [
        "line faint", "line",
    ]  # fmt: skip
    assert [group.get("class") for group in element.iter("g")] == ["s2", "s2"]
    assert element.get("aria-label") == "two <lines>" and element.get("role") == "img"
    assert "style" not in element.attrib and "fill" not in element.attrib  # the page's colours


def test_axes_are_named_with_their_units() -> None:
    y = Axis(label="accuracy (%)", low=0, high=1, ticks=(0.0, 0.5, 1.0))
    texts = [text.text for text in drawing(line_plot([], X, y, "d")).iter("text")]
    assert texts[0:3] == ["0", "0.5", "1"] and {"accuracy (%)", "epoch"} <= set(texts)
