"""Learning curves of groups of runs, against epochs and against time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from delaygrad.report.axis import Axis, fit_axis
from delaygrad.report.line_plot import Line, Point, line_plot
from delaygrad.report.page import Figure, Key, Section, Svg
from delaygrad.report.quantities import plural, time_unit
from delaygrad.report.run_group import RunGroup, by_recipe
from delaygrad.report.run_record import RunRecord

MOST_POINTS = 300
"""Points of a line; of more records, consecutive ones are averaged."""

Curve: TypeAlias = list[tuple[int, Point]]
"""Points by the iteration at which they were recorded."""

_Across: TypeAlias = tuple[
    str, str, float
]  # an event's field, the axis's label, length of its unit


@dataclass(frozen=True, kw_only=True)
class _Measure:
    """One thing to plot: a field of some events."""

    label: str
    value: Callable[[dict[str, Any]], float]
    split: str | None = None  # of evaluations; None is for the training loss
    log: bool = False

    def events(self, run: RunRecord) -> list[dict[str, Any]]:
        if self.split is None:
            return run.of_kind("training")
        return run.evaluations(self.split)


def curves_section(groups: Sequence[RunGroup], heading: str = "Learning curves") -> Section | None:
    """Draw loss and accuracy of the groups, recipe by recipe; None if nothing is on record."""
    parts = [
        Section(recipe, _figures(members))
        for recipe, members in by_recipe(groups).items()
        if _measures(members)
    ]
    if len(parts) == 1:
        return Section(heading, parts[0].blocks)
    return Section(heading, (), tuple(parts)) if parts else None


def _figures(groups: Sequence[RunGroup]) -> tuple[Figure, Figure]:
    """Draw the groups of one recipe, against epochs and against elapsed time."""
    legend = tuple(Key(group.name, group.series) for group in groups)
    measures = _measures(groups)
    several = any(len(group.runs) > 1 for group in groups)
    lines = "Bold: the mean of a group's finished runs; thin: each run. " if several else ""
    diverged = any(run.state == "diverged" for group in groups for run in group.runs)
    crosses = "A cross: the run diverged there. " if diverged else ""
    unit_s, unit = time_unit(_longest_s(groups))
    by_epoch = Figure(
        pictures=_panels(groups, measures, ("epoch", "epoch", 1.0)),
        caption=f"Against epochs. {lines}{crosses}{_thinned(groups)}".strip(),
        legend=legend,
    )
    by_time = Figure(
        pictures=_panels(groups, measures, ("elapsed_s", f"elapsed time ({unit})", unit_s)),
        caption=f"The same against elapsed time, evaluations and checkpoints included. "
        f"{_turns(groups)}".strip(),
        legend=legend,
    )
    return by_epoch, by_time


def curve(run: RunRecord, measure: _Measure, across: _Across) -> Curve:
    """Return the points of one run."""
    field, _, unit = across
    return [
        (event["iteration"], (event[field] / unit, measure.value(event)))
        for event in measure.events(run)
    ]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average curves at the iterations that all of them have.

    Example:
        >>> mean_curve([[(1, (1.0, 4.0)), (2, (2.0, 8.0))], [(1, (3.0, 6.0))]])
        [(1, (2.0, 5.0))]
    """
    by_iteration = [dict(points) for points in curves]
    common = sorted(set.intersection(*map(set, by_iteration))) if by_iteration else []
    return [(t, _mean_point([points[t] for points in by_iteration])) for t in common]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[Point, ...]:
    """Average consecutive points, so many at a time that few enough are left.

    Example:
        >>> thinned([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)], most=2)
        ((0.5, 2.0), (2.0, 5.0))
    """
    size = max(1, math.ceil(len(points) / most))
    return tuple(_mean_point(points[i : i + size]) for i in range(0, len(points), size))


def _mean_point(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _measures(groups: Sequence[RunGroup]) -> list[_Measure]:
    runs = [run for group in groups for run in group.runs]
    log = _spans_a_decade(runs)
    found = [_Measure(label="train loss (nats)", value=_loss, log=log)]
    splits = {event["split"] for run in runs for event in run.of_kind("evaluation")}
    for split in sorted(splits):
        found += [
            _Measure(label=f"{split} loss (nats)", value=_loss, split=split, log=log),
            _Measure(label=f"{split} accuracy (%)", value=_percent, split=split),
        ]
    if "validation" in splits:  # then the test set is looked at once: a point is no curve
        found = [
            measure
            for measure in found
            if measure.split != "test" or any(len(measure.events(run)) > 1 for run in runs)
        ]
    return [measure for measure in found if any(map(measure.events, runs))]


def _loss(event: dict[str, Any]) -> float:
    return float(event["loss"])


def _percent(event: dict[str, Any]) -> float:
    return 100 * float(event["accuracy"])


def _spans_a_decade(runs: Sequence[RunRecord]) -> bool:
    kinds = ("training", "evaluation")
    losses = [event["loss"] for run in runs for kind in kinds for event in run.of_kind(kind)]
    positive = [loss for loss in losses if 0 < loss < math.inf]
    return bool(positive) and max(positive) > 10 * min(positive)


def _panels(
    groups: Sequence[RunGroup], measures: Sequence[_Measure], across: _Across
) -> tuple[Svg, ...]:
    return tuple(_panel(groups, measure, across) for measure in measures)


def _panel(groups: Sequence[RunGroup], measure: _Measure, across: _Across) -> Svg:
    lines = [line for group in groups for line in _group_lines(group, measure, across)]
    finite = [p for line in lines for p in line.points if all(map(math.isfinite, p))]
    x = fit_axis(across[1], [p[0] for p in finite], include=[0.0], tight=True)
    y = fit_axis(measure.label, [p[1] for p in finite], log=measure.log)
    return line_plot(lines, x, y, _description(lines, x, y))


def _group_lines(group: RunGroup, measure: _Measure, across: _Across) -> list[Line]:
    curves = [curve(run, measure, across) for run in group.runs]
    several = len(curves) > 1
    marked = measure.split is not None
    lines = [
        Line(
            label=f"{group.name}, {run.name}" if several else group.name,
            points=thinned([point for _, point in points]),
            series=group.series,
            faint=several,
            marked=marked and not several,
            broken=run.state_text if run.state == "diverged" else "",
        )
        for run, points in zip(group.runs, curves, strict=True)
    ]
    if several:
        meant = group.finished or group.runs
        mean = mean_curve([curve(run, measure, across) for run in meant])
        line = Line(
            label=f"{group.name}, mean of {plural(len(meant), 'run')}",
            points=thinned([point for _, point in mean]),
            series=group.series,
            marked=marked,
        )
        lines.append(line)
    return lines


def _description(lines: Sequence[Line], x: Axis, y: Axis) -> str:
    scale = ", logarithmic" if y.log else ""
    ends = [
        f"{line.label} ends at {line.points[-1][1]:.4g}"
        for line in lines
        if line.points and not line.faint
    ]
    return f"Line plot: {y.label}{scale}, against {x.label}. {'; '.join(ends)}."


def _longest_s(groups: Sequence[RunGroup]) -> float:
    times = [event["elapsed_s"] for group in groups for run in group.runs for event in run.events]
    return max((time for time in times if math.isfinite(time)), default=0.0)


def _thinned(groups: Sequence[RunGroup]) -> str:
    longest = max(len(run.of_kind("training")) for group in groups for run in group.runs)
    size = math.ceil(longest / MOST_POINTS)
    return f"Points are means of up to {size} consecutive records. " if size > 1 else ""


def _turns(groups: Sequence[RunGroup]) -> str:
    if not any(run.takes_turns for group in groups for run in group.runs):
        return ""
    return (
        "Runs of the local runtime let their stages take turns in one process: their time is not "
        "that of a process for each stage."
    )
