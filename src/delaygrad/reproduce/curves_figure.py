"""The figure of a training target: loss against epochs and against time, accuracy, as in papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from delaygrad.reproduce.plan import Series
from delaygrad.reproduce.speed_up import SpeedUp
from delaygrad.reproduce.tally import BASELINE, RunResult, spread

# Okabe and Ito's colours, which colour-blind readers tell apart; methods differ in their dashes.
_COLOURS = {1: "#000000", 2: "#0072B2", 3: "#009E73", 4: "#D55E00", 8: "#CC79A7"}
_OTHER_COLOUR = "#56B4E9"
_DASHES = {("bp", False): "-", ("ddg", False): "-", ("ddg", True): "--", ("dni", False): ":"}
_OTHER_DASHES = "-."
_MANY_TICKS = 15.0  # the ratio of the axis's ends above which ticks at 1, 2 and 5 are enough
_LONG_EPOCHS = 4  # runs at least as long are drawn with a point per epoch


@dataclass(frozen=True)
class Curve:
    """Points that all seeds share, diverged ones only where all have diverged.

    Attributes:
        x: (n,) epochs.
        middle: (n,) mean over the seeds.
        low: (n,) least.
        high: (n,) greatest.
    """

    x: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


def draw_curves(
    results: Sequence[RunResult],
    rows: Sequence[tuple[str, str]],
    title: str,
    path: Path,
    speed_ups: dict[int, SpeedUp],
) -> None:
    """Draw training loss against epochs and time, and test accuracy, a row for each recipe.

    Args:
        results: of one problem.
        rows: recipes with their titles; those without results are left out.
        title: above the figure.
        path: of the figure.
        speed_ups: of K processes over one, by K, where measured; without any, the time is that of
            one process that computes all stages in turn.
    """
    from matplotlib.figure import Figure

    drawn = {result.series.recipe for result in results}
    rows = [row for row in rows if row[0] in drawn] or list(rows)
    figure = Figure(figsize=(13, 0.6 + 3.6 * len(rows)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for (recipe, recipe_title), (loss, timed, accuracy) in zip(rows, grid, strict=True):
        own = [result for result in results if result.series.recipe == recipe]
        for series in dict.fromkeys(result.series for result in own):
            members = [result for result in own if result.series == series]
            look = _look(series, members)
            members = [m for m in members if m.diverged_at_epoch is None] or members
            losses = training_curve(members)
            _draw(loss, losses, 1.0, look)
            if (epoch_s := epoch_seconds(series, own, speed_ups)) is not None:
                _draw(timed, losses, epoch_s, look)
            _draw(accuracy, accuracy_curve(members), 1.0, look)
        loss.set(xlabel="epoch", ylabel="training loss (nats)")
        loss.set_title(recipe_title, loc="left")  # it may be wider than its panel
        timed.set(xlabel=time_label(speed_ups), ylabel="training loss (nats)")
        accuracy.set(xlabel="epoch", ylabel="test accuracy (%)")
        for axes in (loss, timed):
            _logarithmic(axes)
        for axes in (loss, timed, accuracy):
            axes.set_xlim(left=0)
            axes.grid(alpha=0.3)
        if own:
            accuracy.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def training_curve(members: Sequence[RunResult]) -> Curve:
    """Average the training loss over each epoch (in a short run, take it as recorded)."""
    per_epoch = all(member.epochs >= _LONG_EPOCHS for member in members)
    curves = []
    for member in members:
        events = [event for event in member.events if event["event"] == "training"]
        found: dict[float, list[float]] = {}
        for event in events:
            x = float(math.ceil(event["epoch"])) if per_epoch else float(event["epoch"])
            found.setdefault(x, []).append(event["loss"])
        curves.append({x: sum(losses) / len(losses) for x, losses in found.items()})
    return _together(curves)


def accuracy_curve(members: Sequence[RunResult]) -> Curve:
    """Collect the accuracy on the test set, in percent."""
    return _together(
        [
            {
                float(event["epoch"]): 100 * event["accuracy"]
                for event in member.events
                if event["event"] == "evaluation" and event["split"] == "test"
            }
            for member in members
        ]
    )


def epoch_seconds(
    series: Series, results: Sequence[RunResult], speed_ups: dict[int, SpeedUp]
) -> float | None:
    """Say how long an epoch takes: measured in one process, or with K processes where known.

    Returns:
        Seconds; None where it is not known.
    """
    if not speed_ups:
        own = [result for result in results if result.series == series]
        return _mean_epoch_s(own)
    base = _mean_epoch_s([result for result in results if result.series.method == BASELINE])
    if base is None or series.method == BASELINE:
        return base
    known = series.method == "ddg" and series.stages in speed_ups
    return base / speed_ups[series.stages].value if known else None


def time_label(speed_ups: dict[int, SpeedUp]) -> str:
    """Say what the axis of time shows."""
    if not speed_ups:
        return "time of one process, all stages in turn (s)"
    ways = ", ".join(f"K = {k} {speed_up.how}" for k, speed_up in sorted(speed_ups.items()))
    return f"time with K processes (s): BP's measured, divided by\nthe speed-up ({ways})"


def _mean_epoch_s(results: Sequence[RunResult]) -> float | None:
    found = spread([result.epoch_s for result in results if result.epoch_s is not None])
    return None if found is None else float(found["mean"])


def _together(curves: Sequence[dict[float, float]]) -> Curve:
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = np.array([[curve[x] for x in shared] for curve in curves])
    if not shared:
        return Curve([], [], [], [])
    return Curve(shared, *(row.tolist() for row in (values.mean(0), values.min(0), values.max(0))))


def _look(series: Series, members: Sequence[RunResult]) -> dict[str, Any]:
    dashes = _DASHES.get((series.method, bool(series.variant)), _OTHER_DASHES)
    label = series.method_title
    if series.method != BASELINE:
        label += f", K = {series.stages}"
    diverged = sum(member.diverged_at_epoch is not None for member in members)
    if diverged:
        label += f" ({diverged} of {len(members)} diverged)"
    colour = _COLOURS.get(series.stages, _OTHER_COLOUR)
    return {"label": label, "color": colour, "linestyle": dashes}


def _logarithmic(axes: Any) -> None:
    """Make the vertical axis logarithmic, with a few round numbers on it."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high / low > _MANY_TICKS
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw(axes: Any, curve: Curve, scale: float, look: dict[str, Any]) -> None:
    x = [scale * value for value in curve.x]
    axes.plot(x, curve.middle, linewidth=1.2, marker="." if len(x) < 2 else "", **look)
    axes.fill_between(x, curve.low, curve.high, color=look["color"], alpha=0.15, linewidth=0)
