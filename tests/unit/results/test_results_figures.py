"""What is drawn is what was recorded; names do not overlap; colours are those of the page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from recorded_runs import record_run
from timelines import simulated

from delaygrad.errors import ConfigError
from delaygrad.records import Trace, measure_trace
from delaygrad.results import Panel, draw_run, timeline_panel, write_png
from delaygrad.results.bars import Bar, bar_panel, contest_panel, share_panel
from delaygrad.results.figure import COLOURS, colour, svg
from delaygrad.results.lines import Line, line_panel, spaced
from delaygrad.results.timeline import window

PNG = b"\x89PNG"


def drawn(panel: Panel) -> Axes:
    figure = Figure(figsize=(panel.width / 72, panel.height / 72))
    axes = figure.add_axes((0.2, 0.2, 0.5, 0.6))
    panel.draw(axes)
    return axes


@pytest.mark.parametrize("log", [False, True])
def test_lines_lie_where_the_data_says_and_carry_their_names(log: bool) -> None:
    x = [0.5 * i for i in range(1, 25)]
    y = [2.0 * math.exp(-0.2 * i) for i in range(1, 25)]
    lines = [
        Line(label="a", x=x, y=y, low=[v / 2 for v in y], high=[2 * v for v in y], series=1),
        Line(label="a <b> of $x", x=x, y=[1.1 * v for v in y], series=9),
    ]
    axes = drawn(line_panel(lines, "loss", "epoch", log=log))
    assert axes.get_yscale() == ("log" if log else "linear")
    assert list(axes.lines[0].get_ydata()) == y and axes.lines[0].get_color() == colour("s1")
    assert axes.lines[1].get_linestyle() == "--"  # colours repeat after eight series
    (band,) = [c for c in axes.collections if isinstance(c, FillBetweenPolyCollection)]
    low, high = min(y) / 2, 2 * max(y)
    points = band.get_paths()[0].vertices[:, 1]  # type: ignore[call-overload]
    assert (points.min(), points.max()) == pytest.approx((low, high))
    assert [text.get_text() for text in axes.texts] == ["a", "a <b> of $x"]


def test_values_that_are_not_finite_interrupt_and_lines_without_any_are_left_out() -> None:
    lines = [
        Line(label="a", x=[1.0, 2.0, 3.0], y=[1.0, math.nan, 0.5], broken=True),
        Line(label="b", x=[1.0], y=[math.nan]),
        Line(label="c", x=[1.0], y=[2.0]),
    ]
    panel = line_panel(lines, "loss", "epoch", log=True)
    assert panel.description.endswith("a ends at 0.5; c ends at 2")
    axes = drawn(panel)
    markers = [line.get_marker() for line in axes.lines if line.get_marker() not in ("", "None")]
    assert markers == ["x", "o"]  # diverged; a lone point
    drawn(line_panel([], "loss", "epoch", log=True))


def test_wide_differences_leave_the_small_ones_visible() -> None:
    lines = [Line(label=str(v), x=[1.0, 2.0], y=[v, v]) for v in (-0.5, -43.0)]
    axes = drawn(line_panel(lines, "minus BP", "epoch", levels=[0]))
    assert axes.get_yscale() == "symlog"
    places = axes.transData.transform([(1, -0.5), (1, 0)])[:, 1]
    assert places[1] - places[0] > 0.05 * axes.get_window_extent().height
    assert drawn(line_panel(lines[:1], "minus BP", "epoch", levels=[0])).get_yscale() == "linear"


def test_names_are_moved_apart_as_little_as_needed() -> None:
    wanted, sizes = [50.0, 51.0, 10.0, 99.0, 52.0], [10.0, 10.0, 10.0, 10.0, 20.0]
    found = spaced(wanted, sizes, 100.0)
    order = sorted(range(5), key=lambda i: wanted[i])
    for below, above in zip(order, order[1:], strict=False):
        assert found[above] - found[below] >= (sizes[below] + sizes[above]) / 2 - 1e-9
    assert found[2] == 10.0 and found[3] == 95.0  # not in the way; kept inside
    assert sum(found[i] for i in (0, 1)) / 2 < 51 < found[4]


def test_svg_has_the_colours_of_the_page_and_letters_as_text() -> None:
    lines = [Line(label=f"run {i}", x=[1, 2], y=[i, i], series=i) for i in range(8)]
    panel = line_panel(lines, "accuracy (%) <&>", "epoch")
    markup = svg(panel)
    element = ElementTree.fromstring(markup)
    assert element.get("role") == "img" and element.get("aria-label") == panel.description
    texts = [text.text for text in element.iter("text")]
    assert {"accuracy (%) <&>", "epoch", *(f"run {i}" for i in range(8))} <= set(texts)
    for i in range(8):
        assert f"stroke: var(--s{i})" in markup and f"fill: var(--s{i})" in markup
    assert not re.search(r"#[0-9a-f]{6}\b", markup)  # no colour of its own
    ids = re.findall(r'id="([^"]*)"', markup)
    assert len(ids) == len(set(ids)) and svg(panel) == markup
    other = svg(line_panel(lines[:3], "accuracy", "epoch"))
    assert not set(ids) & set(re.findall(r'id="([^"]*)"', other))


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2, from 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_lines_can_be_told_from_the_paper(theme: int) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    paper = COLOURS["paper"][theme]
    for name in ("ink", "quiet", "link", *(f"s{i}" for i in range(8))):
        assert contrast(COLOURS[name][theme], paper) >= 4.5, name


def test_bars_are_stacked_and_marked() -> None:
    bars = [
        Bar(label="one", parts={"forward": 2.0, "wait": 3.0}, ends=(4.0, 6.0), value="5.00"),
        Bar(label="two", parts={"forward": 1.0}, markers={"formula": 1.5}),
    ]
    looks = {"forward": {"facecolor": colour("s1")}, "wait": {"hatch": "//"}}
    axes = drawn(bar_panel(bars, "ms", looks))
    found = [(p.get_x(), p.get_width(), p.get_y() + p.get_height() / 2) for p in axes.patches]
    assert found == [(0.0, 2.0, 0.0), (2.0, 3.0, 0.0), (0.0, 1.0, 1.0)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert list(axes.lines[0].get_xdata()) == [1.5]
    (legend,) = [axes.get_legend()]
    assert [t.get_text() for t in legend.get_texts()] == ["forward", "wait", "formula"]
    assert drawn(share_panel({"a": {"forward": 0.25}}, "%")).patches[0].get_width() == 25.0


@pytest.mark.parametrize("baseline", ["bp", None])
def test_contest_has_a_bar_for_everyone_who_ran(baseline: str | None, tmp_path: Path) -> None:
    def ran(name: str, family: str, ratio: float) -> dict[str, Any]:
        spread = {"median": ratio, "quartiles": [0.9 * ratio, 1.1 * ratio]}
        against = {} if baseline is None else {"baseline": spread}
        return {
            "name": name, "title": name.upper(), "family": family, "iteration": spread,
            "throughput_against": against,
        }  # fmt: skip

    absent = {"name": "zbv-m4", "title": "ZBV", "family": "pipeline", "does_not_run": "no"}
    contestants = [ran("bp", "bp", 1.0), absent, ran("ddg", "ddg", 2.0)]
    results = {"rounds": 5, "compared_with": {"baseline": baseline}, "contestants": contestants}
    panel = contest_panel(results)
    expected = [1.0, 2.0] if baseline else [1.0, 0.5]
    assert [bar.get_width() for bar in drawn(panel).patches] == expected
    image = matplotlib.image.imread(write_png({"": [panel]}, tmp_path / "contest.png"))
    for name, seen in (("s0", True), ("s3", True), ("s5", False)):
        wanted = [int(colour(name)[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        near = abs(image[:, :, :3] - wanted).max(axis=2) < 0.01
        assert bool((near.sum(axis=1) > 100).any()) is seen


def empty() -> Trace:
    trace = simulated([(3, 6, 1)] * 2, 3)
    stages = tuple(replace(stage, events=(), iterations=()) for stage in trace.stages)
    return replace(trace, stages=stages)


@pytest.mark.parametrize(
    "make",
    [
        lambda: simulated([(3, 6, 1)], 1),
        lambda: replace(simulated([(3, 6, 1)] * 2, 9), stages_per_process=(2,)),
        lambda: simulated([(3, 6, 1)] * 4, 3),  # nothing but fill
        empty,
    ],
    ids=["one iteration", "one process", "fill", "empty"],
)
def test_every_timeline_is_drawn(make: Callable[[], Trace], tmp_path: Path) -> None:
    path = write_png({"": [timeline_panel(make(), "a run")]}, tmp_path / "trace.png", "a run")
    assert path.read_bytes().startswith(PNG)


def test_a_timeline_shows_a_few_steady_iterations_without_gaps() -> None:
    trace = simulated([(30, 60, 10)] * 2, 30, hop_ms=2, send_ms=1, between_ms=5)
    start_ns, end_ns = window(trace)
    steady = trace.stages[0].iterations[2:29]
    assert steady[0].start_ns < start_ns and end_ns <= (steady[-1].end_ns or 0)
    axes = drawn(timeline_panel(trace, "a run"))
    rows: dict[float, list[tuple[float, float, Any]]] = {}
    for bar in axes.patches:
        middle = bar.get_y() + bar.get_height() / 2
        rows.setdefault(middle, []).append((bar.get_x(), bar.get_width(), bar.get_facecolor()))
    assert len(rows) == 2
    for (_, whole, _), *bars in rows.values():  # "other" lies under everything
        assert whole == pytest.approx((end_ns - start_ns) / 1e6)
        assert 0.9 * whole < sum(width for _, width, _ in bars) < whole
    assert any(width == pytest.approx(60.0) for bars in rows.values() for _, width, _ in bars)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["forward", "backward", "update", "send", "wait", "other"]
    assert {"F14", "B13"} <= {text.get_text() for text in axes.texts}


def test_a_run_gets_figures_even_where_its_records_are_damaged(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", stages=2, trace=True)
    with (folder / "records.jsonl").open("a") as file:
        file.write("damaged\n{}\n")
    assert draw_run(folder).read_bytes().startswith(PNG)
    assert (folder / "trace.png").read_bytes().startswith(PNG) and (folder / "trace.json").exists()


def test_a_figure_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent" / "a.png", tmp_path / "a.nonsense"):
        with pytest.raises(ConfigError, match=r"cannot write the figure \(.*choose another file"):
            write_png({"a title": []}, path)


def test_what_replicas_average_is_named_only_where_there_are_some() -> None:
    trace = simulated([(30, 60, 10)] * 2, 30, hop_ms=2, send_ms=1, between_ms=5)
    assert measure_trace(trace)["stages"][0]["average_s"] == 0
    stages = tuple(
        replace(
            stage,
            events=tuple(
                each
                for event in stage.events
                for each in (event._replace(activity="average"), event)
                if event.activity == "update" or each is event
            ),
        )
        for stage in trace.stages
    )
    trace = replace(trace, stages=stages)
    names = [t.get_text() for t in drawn(timeline_panel(trace, "a")).get_legend().get_texts()]
    assert names == ["forward", "backward", "average", "update", "send", "wait", "other"]
    assert measure_trace(trace)["stages"][0]["average_s"] == pytest.approx(0.01)
    axes = drawn(share_panel({"a": {"forward": 0.25, "average": 0.5}}, "%"))
    assert [t.get_text() for t in axes.get_legend().get_texts()][2] == "average"
