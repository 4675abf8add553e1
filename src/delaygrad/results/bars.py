"""Panels with a row for each thing: stacked bars with markers, and dots of final accuracies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from delaygrad.records import shown_activities
from delaygrad.results.figure import ACTIVITY_COLOURS, FONT_SIZE, Panel, colour
from delaygrad.results.group import RunGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW, _LETTER = 19.0, 0.6 * FONT_SIZE  # points
_FAMILIES = {"bp": "s0", "ceiling": "ink", "pipeline": "s5", "ddp": "s1", "ddg": "s3"}
_SHAPES = ("|", "D", "x")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row.

    Attributes:
        label: at its left.
        parts: lengths by name, stacked.
        ends: of a thin line over the bar, such as quartiles; () for none.
        markers: other values by name, each drawn as a marker.
        value: written at the right end; "" for nothing.
    """

    label: str
    parts: Mapping[str, float]
    ends: tuple[float, ...] = ()
    markers: Mapping[str, float] = field(default_factory=dict)
    value: str = ""


def bar_panel(
    bars: Sequence[Bar],
    xlabel: str,
    looks: Mapping[str, Mapping[str, Any]],
    *,
    named: bool = True,
    level: float | None = None,
) -> Panel:
    """Return a panel of bars, the first on top.

    Args:
        bars: one or more.
        xlabel: what their lengths are, with the unit.
        looks: of each part of a bar.
        named: name the parts above the plane.
        level: a value to mark across all bars.
    """
    markers = dict.fromkeys(name for bar in bars for name in bar.markers)

    def draw(axes: Axes) -> None:
        for place, bar in enumerate(bars):
            left = 0.0
            for name, length in bar.parts.items():
                axes.barh(place, length, left=left, height=0.75, **looks[name])
                left += length
            if bar.ends:
                axes.hlines(
                    place, min(bar.ends), max(bar.ends), color=colour("quiet"), linewidth=1.2
                )
            at = max(left, *bar.ends) if bar.ends else left
            axes.annotate(bar.value, (at, place), (4, 0), textcoords="offset points", va="center")
            for name, marker in zip(markers, _SHAPES, strict=False):
                if name in bar.markers:
                    axes.plot(bar.markers[name], place, marker, color=colour("ink"), ms=6, mew=1.5)
        axes.margins(x=0.12 if any(bar.value for bar in bars) else 0.02)
        axes.set_xlim(left=0)
        axes.set_xlabel(xlabel)
        if level is not None:
            axes.axvline(level, color=colour("quiet"), linewidth=0.8, linestyle=":")
        if named or markers:
            legend(axes, looks if named else {}, dict(zip(markers, _SHAPES, strict=False)))

    described = "; ".join(
        f"{bar.label}: "
        + ", ".join(f"{k} {v:.4g}" for k, v in {**bar.parts, **bar.markers}.items())
        for bar in bars
    )
    names = [*(looks if named else ()), *markers]
    plane = max(340.0, sum(_LETTER * len(name) + 26 for name in names))
    top = 28 if names else 8
    return _rows_panel(
        [bar.label for bar in bars], draw, f"Bars: {xlabel}. {described}", plane, top
    )


def _rows_panel(
    labels: Sequence[str],
    draw: Callable[[Axes], None],
    description: str,
    plane: float,
    top: float,
) -> Panel:
    left = 14 + _LETTER * max(map(len, labels), default=0)

    def draw_rows(axes: Axes) -> None:
        axes.set_yticks(range(len(labels)), labels)
        axes.grid(axis="x")
        draw(axes)
        axes.set_ylim(len(labels) - 0.5, -0.5)  # the first on top

    return Panel(
        draw=draw_rows,
        description=description,
        width=left + plane + 24,
        height=top + 42 + _ROW * max(1, len(labels)),
        margins=(left, 24, top, 42),
    )


def activity_looks(*more: str, averaged: object = True) -> dict[str, dict[str, Any]]:
    """Return how activities, and others such as "other", are drawn; waiting is hatched."""
    looks: dict[str, dict[str, Any]] = {
        name: {"facecolor": colour(ACTIVITY_COLOURS[name]), "linewidth": 0}
        for name in (*shown_activities(averaged=averaged), *more)
    }
    looks["wait"] |= {"hatch": "////", "edgecolor": colour("quiet")}
    return looks


def legend(
    axes: Axes, looks: Mapping[str, Mapping[str, Any]], markers: Mapping[str, str] | None = None
) -> None:
    """Name parts and markers in a row above the plane."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(label=name, **look) for name, look in looks.items()]
    handles += [
        Line2D([], [], marker=marker, linestyle="", label=name, color=colour("ink"), ms=6, mew=1.5)
        for name, marker in (markers or {}).items()
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3,
        ncols=len(handles), handlelength=1, handletextpad=0.4, columnspacing=1.2, borderpad=0,
    )  # fmt: skip


def share_panel(rows: Mapping[str, Mapping[str, float]], title: str) -> Panel:
    """Draw shares of time, from 0 to 1, by label and activity."""
    averaged = any(shares.get("average") for shares in rows.values())
    looks = activity_looks(averaged=averaged)
    bars = [
        Bar(label=label, parts={name: 100 * shares[name] for name in looks if name in shares})
        for label, shares in rows.items()
    ]
    return bar_panel(bars, title, looks)


def accuracy_panel(groups: Sequence[RunGroup]) -> Panel | None:
    """Draw each run's final accuracy as a ring, with mean and standard deviation; None: no run."""
    shown = [(group, spread) for group in groups if (spread := group.spread("final_accuracy"))]

    def draw(axes: Axes) -> None:
        for place, (group, spread) in enumerate(shown):
            own = colour(group.series)
            if spread.sd is not None:
                ends = spread.mean - spread.sd, spread.mean + spread.sd
                axes.hlines(place, *ends, color=own, linewidth=5, alpha=0.3)
            axes.plot(spread.mean, place, marker="|", ms=13, mew=2.2, color=own)
            for run in group.finished:
                accuracy = run.final_accuracy or 0.0
                axes.plot(accuracy, place, marker="o", ms=5, markerfacecolor="none", color=own)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
        axes.set_xlabel("final test accuracy (%)")

    described = "; ".join(f"{group.label} {spread.mean:.2f} %" for group, spread in shown)
    labels = [group.label for group, _ in shown]
    return (
        _rows_panel(labels, draw, f"Dots: final accuracy. {described}", 250, 8) if shown else None
    )


def contest_panel(results: Mapping[str, Any]) -> Panel:
    """Draw the throughput of each contestant as a multiple of the baseline's, with quartiles.

    Without the baseline in the contest: iterations per second.
    """
    ran = [contestant for contestant in results["contestants"] if "iteration" in contestant]
    baseline = results["compared_with"]["baseline"]
    title = next((c["title"] for c in ran if c["name"] == baseline), None)
    bars = []
    for contestant in ran:
        middle, *ends = _throughput(contestant, baseline)
        parts = {contestant["family"]: middle}
        label, text = contestant["title"], f"{middle:.2f}"
        bars.append(Bar(label=label, parts=parts, ends=tuple(ends), value=text))
    unit = "iterations per second" if title is None else f"throughput / that of {title}"
    looks = {family: {"facecolor": colour(name)} for family, name in _FAMILIES.items()}
    xlabel = f"{unit} (median, quartiles of {results['rounds']} rounds)"
    return bar_panel(bars, xlabel, looks, named=False, level=None if title is None else 1.0)


def _throughput(contestant: Mapping[str, Any], baseline: str | None) -> tuple[float, ...]:
    if baseline is not None:
        ratio = contestant["throughput_against"]["baseline"]
        return ratio["median"], *ratio["quartiles"]
    slow_to_fast = contestant["iteration"]["quartiles"][::-1]
    return 1 / contestant["iteration"]["median"], *(1 / seconds for seconds in slow_to_fast)
