"""Learning curves of groups of runs: the mean over the seeds, and a standard deviation about it.

Losses of training are averaged over each epoch; runs of a few epochs show them as recorded. Each
point of a mean is over all runs of the group that are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from delaygrad.records.spread import spread_of, time_unit
from delaygrad.results.figure import Panel
from delaygrad.results.group import BASELINE, RunGroup
from delaygrad.results.lines import Line, line_panel
from delaygrad.results.run import Run, number

_LONG = 4  # epochs; runs at least as long have one training loss per epoch
_MOST_POINTS = 300  # of a line; more records are averaged, several in a row


@dataclass(frozen=True)
class Point:
    """What a run recorded at one moment."""

    epoch: float
    elapsed_s: float
    value: float


Curve: TypeAlias = dict[float, Point]
"""Points by what runs of a group share: the epoch, or the iteration."""

Across: TypeAlias = Callable[[RunGroup, Point], float | None]
"""The place of a point on the horizontal axis; None: not known of this group."""


@dataclass(frozen=True)
class Measure:
    """Something recorded during a run.

    Attributes:
        split: of evaluations; "train": the loss of training.
        field: loss or accuracy.
    """

    split: str
    field: str

    @property
    def label(self) -> str:
        """Its name, with the unit."""
        unit = "nats" if self.field == "loss" else "%"
        return f"{self.split} {self.field} ({unit})"

    def curve(self, run: Run) -> Curve:
        """Return what a run recorded."""
        if self.split == "train":
            return _training_curve(run)
        scale = 1 if self.field == "loss" else 100
        return {
            float(event["iteration"]): Point(
                float(event["epoch"]), event["elapsed_s"], scale * event[self.field]
            )
            for event in run.evaluations(self.split)
        }


def _training_curve(run: Run) -> Curve:
    events = run.of_kind("training")
    size = max(1, math.ceil(len(events) / _MOST_POINTS))
    bins: dict[float, list[dict[str, float]]] = {}
    for index, event in enumerate(events):
        whole = math.ceil(event["epoch"]) if run.epochs >= _LONG else index // size
        bins.setdefault(float(whole), []).append(event)
    found = {}
    for key, members in bins.items():
        epoch = min(key, run.epochs) if run.epochs >= _LONG else members[-1]["epoch"]
        loss = math.fsum(event["loss"] for event in members) / len(members)
        found[key] = Point(epoch, members[-1]["elapsed_s"], loss)
    return found


def minus_baseline(measure: Measure, group: RunGroup, baseline: RunGroup) -> list[Curve]:
    """Return a measure minus backpropagation's, for each seed that both groups have."""
    known = {run.seed: measure.curve(run) for run in baseline.drawn}
    found = []
    for run in group.drawn:
        other = known.get(run.seed, {})
        points = measure.curve(run).items()
        found.append({
            key: Point(p.epoch, p.elapsed_s, p.value - other[key].value)
            for key, p in points if key in other
        })  # fmt: skip
    return [curve for curve in found if curve]


def group_line(group: RunGroup, curves: Sequence[Curve], across: Across) -> Line:
    """Average curves at what all of them share; the band is one standard deviation wide."""
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    x, mean, low, high = [], [], [], []
    for key in shared:
        points = [curve[key] for curve in curves]
        places = [across(group, point) for point in points]
        known = [place for place in places if place is not None]
        values = spread_of(point.value for point in points)
        if len(known) < len(places) or values is None:
            continue
        x.append(math.fsum(known) / len(known))
        mean.append(values.mean)
        low.append(values.mean - (values.sd or 0.0))
        high.append(values.mean + (values.sd or 0.0))
    diverged = group.count("diverged")
    lost = f" ({diverged} of {len(group.runs)} diverged)" if diverged else ""
    return Line(
        label=f"{group.name}{lost}",
        x=x,
        y=mean,
        low=low if len(curves) > 1 else (),
        high=high if len(curves) > 1 else (),
        series=group.series,
        broken=bool(diverged) and not group.finished,
    )


def by_epoch(group: RunGroup, point: Point) -> float:
    """Place points by their epoch."""
    return point.epoch


def measures_of(groups: Sequence[RunGroup]) -> list[Measure]:
    """List what the runs recorded; with validation, a single test at the end is left out."""
    runs = [run for group in groups for run in group.runs]
    splits = {event["split"] for run in runs for event in run.of_kind("evaluation")}
    if "validation" in splits and all(len(run.evaluations("test")) < 2 for run in runs):
        splits.discard("test")
    found = [Measure("train", "loss")] if any(run.of_kind("training") for run in runs) else []
    return found + [
        Measure(split, field) for split in sorted(splits) for field in ("loss", "accuracy")
    ]


def curve_panel(groups: Sequence[RunGroup], measure: Measure, across: Across, xlabel: str) -> Panel:
    """Draw a measure of groups of one recipe."""
    lines = [
        group_line(group, [measure.curve(run) for run in group.drawn], across) for group in groups
    ]
    return line_panel(lines, measure.label, xlabel, log=measure.field == "loss")


def difference_panel(groups: Sequence[RunGroup], measure: Measure) -> Panel | None:
    """Draw what each group's measure is minus backpropagation's; None without such a pair."""
    lines = []
    for group in groups:
        baseline = group.baseline_in(groups)
        if group.method != BASELINE and baseline is not None:
            lines.append(group_line(group, minus_baseline(measure, group, baseline), by_epoch))
    if not any(line.x for line in lines):
        return None
    return line_panel(lines, f"{measure.split} accuracy minus BP's (points)", "epoch", levels=[0])


def epoch_panels(groups: Sequence[RunGroup]) -> tuple[Panel, ...]:
    """Draw everything recorded by the groups of one recipe against epochs, and the differences."""
    measures = measures_of(groups)
    found = [curve_panel(groups, measure, by_epoch, "epoch") for measure in measures]
    accuracies = [measure for measure in measures if measure.field == "accuracy"]
    found += [p for m in accuracies if (p := difference_panel(groups, m)) is not None]
    return tuple(found)


@dataclass(frozen=True)
class TimeAxis:
    """Where points lie on an axis of time, what the axis is called, and what readers must know."""

    across: Across
    label: str
    note: str = ""


def elapsed_axis(groups: Sequence[RunGroup]) -> TimeAxis:
    """Return the axis of the time since each run began."""
    times = [event["elapsed_s"] for g in groups for run in g.runs for event in run.events]
    unit_s, unit = time_unit(max((t for t in times if math.isfinite(t)), default=0.0))
    turns = (
        "Runs of the local runtime compute their stages in turn in one process; K processes take "
        "another time."
    )
    alternate = any(run.takes_turns for group in groups for run in group.runs)
    return TimeAxis(
        across=lambda _, point: point.elapsed_s / unit_s,
        label=f"elapsed time ({unit})",
        note=f"Elapsed time includes evaluations and checkpoints. {turns * alternate}".strip(),
    )


def epochs_axis(epoch_s: Mapping[str, float], label: str, note: str) -> TimeAxis:
    """Return an axis of time on which an epoch of a group takes so many seconds, by its name."""

    def across(group: RunGroup, point: Point) -> float | None:
        seconds = epoch_s.get(group.name)
        return None if seconds is None else seconds * point.epoch

    return TimeAxis(across=across, label=label, note=note)


def time_panels(groups: Sequence[RunGroup], time: TimeAxis) -> tuple[Panel, ...]:
    """Draw the training loss and the accuracies of one recipe against time."""
    measures = [m for m in measures_of(groups) if m.split == "train" or m.field == "accuracy"]
    return tuple(curve_panel(groups, m, time.across, time.label) for m in measures)


def key_panels(groups: Sequence[RunGroup], time: TimeAxis) -> list[Panel]:
    """Draw one recipe in short: loss against time, accuracy against epochs and minus BP's."""
    loss, accuracy = Measure("train", "loss"), Measure("test", "accuracy")
    found = [
        curve_panel(groups, loss, time.across, time.label),
        curve_panel(groups, accuracy, by_epoch, "epoch"),
        difference_panel(groups, accuracy),
    ]
    return [panel for panel in found if panel is not None]


def directions(run: Run, stage: int, field: str) -> Curve:
    """Return one direction constant of one stage; records without it are left out."""
    found: Curve = {}
    for event in run.of_kind("direction"):
        for row in event["stages"]:
            value = number(row.get(field))
            if row["stage"] == stage and value is not None and math.isfinite(value):
                at = float(event["epoch"]), event["elapsed_s"]
                found[float(event["iteration"])] = Point(*at, value)
    return found


DIRECTIONS = {
    "sufficient_direction": "sufficient direction σ",
    "cosine": "cosine of the angle",
    "staleness_ratio": "staleness ratio ρ",
}
"""The recorded direction constants."""


def direction_panels(group: RunGroup) -> tuple[Panel, ...]:
    """Draw the direction constants of each stage; () where no run recorded any."""
    runs = [run for run in group.runs if run.of_kind("direction")]
    rows = [row for run in runs for event in run.of_kind("direction") for row in event["stages"]]
    delays = {row["stage"]: row.get("delay") for row in rows}
    found = []
    for field, label in DIRECTIONS.items() if rows else ():
        lines = []
        for stage, delay in sorted(delays.items()):
            line = group_line(group, [directions(run, stage, field) for run in runs], by_epoch)
            name = f"stage {stage}, delay {delay}"
            lines.append(
                Line(label=name, x=line.x, y=line.y, low=line.low, high=line.high, series=stage + 1)
            )
        found.append(line_panel(lines, label, "epoch", levels=[0, 1]))
    return tuple(found)


CAPTION = (
    "Lines are means over the finished runs of a group, bands one standard deviation on each side. "
    "A cross marks where all runs of a group diverged. Training losses are means over each epoch; "
    "those of runs of few epochs are as recorded, or means of a few consecutive records."
)
