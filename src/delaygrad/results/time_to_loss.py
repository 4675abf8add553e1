"""Time to loss: samples until a training loss is reached, times seconds per sample.

    samples   of the runs, up to where the curve of the training loss meets the loss
    seconds   per sample in steady state, measured or predicted, by group
    loss      a little above what every run of the best backpropagation ends at

A method counts with its best recipe, so with the learning rate at which it is fastest.
Synchronous pipelines compute backpropagation's gradients: they need its samples. The dial shows
what micro-batches do to the final training loss and to the speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from delaygrad.records.spread import MISSING, Spread, spread_json, spread_of, spread_text, time_unit
from delaygrad.results.bars import Bar, bar_panel
from delaygrad.results.curves import Measure, TimeAxis, epochs_axis
from delaygrad.results.figure import Panel, colour
from delaygrad.results.group import BASELINE, RunGroup
from delaygrad.results.lines import Line, line_panel
from delaygrad.results.page import Column, Table
from delaygrad.results.run import Run

_WORTH = 1.05  # less is not worth another arithmetic
_COLOURS = {"baseline": "s0", "synchronous": "s5", "delayed": "s3"}


@dataclass(frozen=True, kw_only=True)
class TimeToLoss:
    """How long a method takes.

    Attributes:
        name: of the method, its K and options.
        recipe: its best one; "" if there is only one.
        kind: delayed: a method of delayed gradients; synchronous: a pipeline that computes
            backpropagation's gradients; baseline: backpropagation on one device.
        reached: runs that reached the loss.
        runs: all runs.
        samples: until then.
        sample_s: seconds per sample; None: not known.
    """

    name: str
    recipe: str
    kind: str
    reached: int
    runs: int
    samples: Spread | None
    sample_s: float | None

    @property
    def seconds(self) -> float | None:
        """Mean seconds until the loss; None if a run did not reach it, or no time is known."""
        if self.samples is None or self.sample_s is None or self.reached < self.runs:
            return None
        return self.samples.mean * self.sample_s

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "samples": spread_json(self.samples), "seconds": self.seconds}


def target_loss(groups: Sequence[RunGroup], within: float) -> float | None:
    """Return the loss to reach: one that every run of the best backpropagation reaches.

    None before backpropagation has finished, and where its loss has not fallen below that one.

    Args:
        groups: of all recipes; the best backpropagation has the lowest mean of final losses.
        within: how far above its highest final training loss, as a fraction.
    """
    best = best_baseline(groups)
    if best is None:
        return None
    loss = (1 + within) * max(run.train_loss or 0.0 for run in best.finished)
    return loss if loss < min(_points(run)[0][1] for run in best.finished) else None


def best_baseline(groups: Sequence[RunGroup]) -> RunGroup | None:
    """Return the backpropagation with the lowest mean of final training losses, of all recipes."""
    found = [
        (spread.mean, number)
        for number, group in enumerate(groups)
        if group.method == BASELINE and (spread := group.spread("train_loss")) is not None
    ]
    return groups[min(found)[1]] if found else None


def _points(run: Run) -> list[tuple[float, float]]:
    """Return epochs and training losses of the curve that reports draw."""
    curve = Measure("train", "loss").curve(run)
    return [(point.epoch, point.value) for _, point in sorted(curve.items())]


def samples_to(run: Run, loss: float) -> float | None:
    """Return the samples that a run trained on until its training loss was reached.

    The curve is the one that reports draw; between its points it is a straight line.
    """
    points = _points(run)
    for (before, high), (epoch, low) in itertools.pairwise([points[0], *points] if points else []):
        if low <= loss:
            part = (high - loss) / (high - low) if high > loss else 1.0
            return (before + part * (epoch - before)) * _samples_per_epoch(run)
    return None


def _samples_per_epoch(run: Run) -> float:
    last = run.of_kind("training")[-1]
    return float(last["iteration"] / last["epoch"] * run.config["batch_size"])


def predicted_axis(groups: Sequence[RunGroup], seconds: Mapping[str, float]) -> TimeAxis | None:
    """Return an axis of time on which a sample takes so many seconds; None if none is known.

    Args:
        groups: of one recipe.
        seconds: per sample, by the name of a group.
    """
    epoch_s = {
        group.name: seconds[group.name] * _samples_per_epoch(run)
        for group in groups
        if group.name in seconds
        for run in group.runs[:1]
        if run.of_kind("training")
    }
    note = "The time on K devices, as in the verdict: samples times seconds per sample."
    return epochs_axis(epoch_s, "s on K devices", note) if epoch_s else None


def times_to_loss(
    groups: Sequence[RunGroup],
    seconds: Mapping[str, float],
    synchronous: Mapping[str, float],
    loss: float,
) -> list[TimeToLoss]:
    """Return every method and synchronous pipeline, the fastest first, unknown times last.

    Args:
        groups: of all recipes.
        seconds: per sample, by the name of a group.
        synchronous: seconds per sample of pipelines that compute backpropagation's gradients, by
            their names.
        loss: to reach.
    """
    best: dict[str, TimeToLoss] = {}
    for group in groups:
        known = [samples_to(run, loss) for run in group.finished]
        found = TimeToLoss(
            name=group.name,
            recipe=group.recipe,
            kind="baseline" if group.method == BASELINE else "delayed",
            reached=sum(samples is not None for samples in known),
            runs=len(group.runs),
            samples=spread_of(known),
            sample_s=seconds.get(group.name),
        )
        best[group.name] = min(best.get(group.name, found), found, key=_rank)
    baselines = [one for one in best.values() if one.kind == "baseline"]
    rivals = [
        replace(base, name=name, recipe="", kind="synchronous", sample_s=sample_s)
        for base in sorted(baselines, key=_rank)[:1]
        for name, sample_s in synchronous.items()
    ]
    return sorted([*best.values(), *rivals], key=_rank)


def _rank(one: TimeToLoss) -> tuple[float, int, float]:
    """Order by time; then by the runs that did not reach the loss, then by samples."""
    seconds = float("inf") if one.seconds is None else one.seconds
    samples = float("inf") if one.samples is None else one.samples.mean
    return seconds, one.runs - one.reached, samples


def recommendation(times: Sequence[TimeToLoss], loss: float) -> str:
    """Say in a sentence which method to use.

    A method of delayed gradients has to be 5 % faster than everything else.

    Args:
        times: from ``times_to_loss``.
        loss: that is reached.
    """
    best: dict[str, TimeToLoss] = {}
    for one in sorted(times, key=_rank):
        if one.seconds is not None:
            best.setdefault(one.kind, one)
    delayed = best.pop("delayed", None)
    if not best:
        return "No verdict: backpropagation has no time to compare with."
    rival = min(best.values(), key=_rank)
    used = delayed if delayed and _ratio(rival, delayed) >= _WORTH else rival
    start = f"Use {_named(used)}: it reaches the training loss {loss:.4g} in {_time(used)}"
    if used is delayed:
        sooner = [f"{_ratio(one, used):.2f} times sooner than {one.name}" for one in best.values()]
        return f"{start}, {' and '.join(sooner)}."
    if delayed is None:
        return f"{start}; no method of delayed gradients reaches that loss in all runs."
    return f"{start}; {_named(delayed)} takes {_ratio(delayed, used):.2f} times as long."


def _ratio(slow: TimeToLoss, fast: TimeToLoss) -> float:
    assert slow.seconds is not None and fast.seconds is not None
    return slow.seconds / fast.seconds


def _named(one: TimeToLoss) -> str:
    return f"{one.name} ({one.recipe})" if one.recipe else one.name


def _time(one: TimeToLoss) -> str:
    assert one.seconds is not None
    unit_s, unit = time_unit(one.seconds)
    return f"{one.seconds / unit_s:.3g} {unit}"


def time_panel(times: Sequence[TimeToLoss]) -> Panel | None:
    """Draw time to loss, a bar for each that reached the loss; None if none did."""
    known = [(one, one.seconds) for one in times if one.seconds is not None]
    unit_s, unit = time_unit(max((seconds for _, seconds in known), default=0.0))
    bars = [
        Bar(label=_named(one), parts={one.kind: seconds / unit_s}, value=_time(one))
        for one, seconds in known
    ]
    looks = {kind: {"facecolor": colour(name)} for kind, name in _COLOURS.items()}
    return bar_panel(bars, f"time to loss ({unit})", looks) if bars else None


def time_table(times: Sequence[TimeToLoss], loss: float) -> Table:
    """Tabulate time to loss; ratios are to backpropagation on one device."""
    base = next((one for one in times if one.kind == "baseline" and one.seconds is not None), None)
    rows = [
        (
            _named(one),
            f"{one.reached} of {one.runs}",
            spread_text(one.samples, 0),
            MISSING if one.sample_s is None else f"{1e6 * one.sample_s:,.3g}",
            MISSING if one.seconds is None else _time(one),
            f"{_ratio(base, one):.2f}" if base and one.seconds is not None else MISSING,
        )
        for one in times
    ]
    columns = (
        Column("method"),
        Column("reached", "runs", number=True),
        Column("samples", "to the loss", number=True),
        Column("µs per sample", number=True),
        Column("time to loss", number=True),
        Column("faster than BP", "times", number=True),
    )
    caption = f"Time to the training loss {loss:.4g}, each method with its best recipe"
    return Table(caption=caption, columns=columns, rows=tuple(rows))


@dataclass(frozen=True, kw_only=True)
class DialPoint:
    """A method with M micro-batches.

    Attributes:
        name: of the method, its K and its options, but for M.
        micro_batches: M.
        loss: final training loss; None: no run has finished.
        sample_s: seconds per sample; None: not known.
    """

    name: str
    micro_batches: int
    loss: Spread | None
    sample_s: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "loss": spread_json(self.loss)}


def dial_panels(
    points: Sequence[DialPoint], base: float | None, rivals: Mapping[str, Mapping[int, float]]
) -> tuple[Panel, ...]:
    """Draw loss and samples per second against M; nothing where no method has two M.

    Args:
        points: of all methods.
        base: final training loss of the best backpropagation; None: not known.
        rivals: seconds per sample by M, by the name of a synchronous schedule.
    """
    by_name: dict[str, list[DialPoint]] = {}
    for point in sorted(points, key=lambda point: point.micro_batches):
        by_name.setdefault(point.name, []).append(point)
    if all(len(own) < 2 for own in by_name.values()):
        return ()
    losses, speeds = list[Line](), list[Line]()
    for number, (name, own) in enumerate(by_name.items(), start=1):
        known = [(point.micro_batches, point.loss) for point in own if point.loss is not None]
        if base is not None and known:
            percent = [100 * (loss.mean / base - 1) for _, loss in known]
            spreads = [100 * (loss.sd or 0.0) / base for _, loss in known]
            losses.append(
                Line(
                    label=name, x=[m for m, _ in known], y=percent, series=number,
                    low=[y - sd for y, sd in zip(percent, spreads, strict=True)],
                    high=[y + sd for y, sd in zip(percent, spreads, strict=True)],
                )
            )  # fmt: skip
        speeds.append(_speed(name, number, {p.micro_batches: p.sample_s for p in own}))
    for number, (name, by_m) in enumerate(rivals.items(), start=len(by_name) + 1):
        speeds.append(_speed(name, number, by_m))
    panels = (
        line_panel(losses, "final training loss over BP's (%)", "micro-batches M", levels=(0.0,)),
        line_panel(speeds, "samples per second on K devices", "micro-batches M"),
    )
    return panels if losses else panels[1:]


def _speed(name: str, number: int, sample_s: Mapping[int, float | None]) -> Line:
    known = {m: 1 / seconds for m, seconds in sorted(sample_s.items()) if seconds}
    return Line(label=name, x=list(known), y=list(known.values()), series=number)
