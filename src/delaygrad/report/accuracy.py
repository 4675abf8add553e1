"""The result: accuracy of every group of runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from delaygrad.report.axis import Axis, fit_axis
from delaygrad.report.page import Cell, Column, Row, Svg, Table
from delaygrad.report.quantities import (
    MISSING,
    Spread,
    signed,
    spread_text,
    time_unit,
)
from delaygrad.report.run_group import RunGroup, by_recipe
from delaygrad.report.strip_plot import strip, strip_axis


def accuracy_table(groups: Sequence[RunGroup]) -> Table:
    """Tabulate the groups: final accuracy and, beside it, the best one on the test set."""
    axis = _accuracy_axis(groups)
    longest_s = max((s.mean for g in groups if (s := g.result("train_s"))), default=0.0)
    unit_s, unit = time_unit(longest_s)
    columns = (
        Column("runs"),
        Column("final test accuracy (%)", "after the last iteration", number=True),
        Column("each run", "and the mean (%)", picture=strip_axis(axis)),
        Column("minus BP", "points", number=True),
        Column("best test accuracy (%)", "chosen on the test set", number=True),
        Column("test loss", "final, nats", number=True),
        Column("train loss", "last report, nats", number=True),
        Column(f"training time ({unit})", number=True),
    )
    rows: list[Row] = []
    for recipe, members in by_recipe(groups).items():
        rows += [(recipe,)] if recipe else []
        rows += [_group_row(group, groups, axis, unit_s) for group in members]
    return Table(caption="Accuracy by group of runs", columns=columns, rows=tuple(rows), note=_NOTE)


_NOTE = (
    "a ± b: mean and standard deviation (n − 1) over the group's finished runs; a alone: one run. "
    "The final accuracy is that of the last iteration, decided before the run. The best is the "
    "highest of all evaluations during a run: picked by looking at the test set, it is too high, "
    "and stands here because papers report it."
)


def _group_row(group: RunGroup, groups: Sequence[RunGroup], axis: Axis, unit_s: float) -> Row:
    gap = group.minus_baseline_in(groups)
    return (
        Cell(group.name, _members(group), group.series),
        _final(group),
        _strip(group, axis),
        MISSING if gap is None else signed(100 * gap, 2),
        spread_text(group.best_test, 2, 100),
        _loss(group.result("test_loss")),
        _loss(group.result("train_loss")),
        Cell(spread_text(group.result("train_s"), 1, 1 / unit_s), _speed(group)),
    )


def _final(group: RunGroup) -> str:
    """Write the accuracy, or what became of the runs instead."""
    if group.final_test is not None:
        return spread_text(group.final_test, 2, 100)
    return " or ".join(sorted({run.state for run in group.runs}))


def _loss(spread: Spread | None) -> str:
    """Write a loss."""
    return "< 0.001" if spread is not None and spread.mean < 0.001 else spread_text(spread, 3)


def _members(group: RunGroup) -> str:
    """Name the seeds, and what became of runs without a result."""
    seeds = ", ".join(str(run.seed) for run in group.runs)
    states = Counter(run.state for run in group.runs)
    lost = [f"{states[s]} {s}" for s in ("diverged", "unfinished") if states[s]]
    return "; ".join([f"seed{'s' * (len(group.runs) > 1)} {seeds}", *lost])


def _speed(group: RunGroup) -> str:
    speed = group.result("samples_per_s")
    return "" if speed is None else f"{speed.mean:,.0f} samples/s"


def _strip(group: RunGroup, axis: Axis) -> str | Svg:
    if group.final_test is None:
        return MISSING
    percent = Spread(values=tuple(100 * value for value in group.final_test.values))
    titles = [
        f"{run.name}: {value:.2f} %"
        for run, value in zip(group.finished, percent.values, strict=True)
    ]
    return strip(percent, axis, group.series, titles, f"{group.label}: {'; '.join(titles)}")


def _accuracy_axis(groups: Sequence[RunGroup]) -> Axis:
    shown = []
    for group in groups:
        if (spread := group.final_test) is not None:
            std = spread.std or 0.0
            shown += [*spread.values, spread.mean - std, spread.mean + std]
    return fit_axis("%", [100 * value for value in shown if math.isfinite(value)])


def accuracy_json(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Return the table as plain values; accuracies are fractions."""
    return [
        {
            "name": group.name,
            "recipe": group.recipe,
            "method": group.runs[0].method,
            "num_stages": group.runs[0].num_stages,
            "final_test_accuracy": _plain(group.final_test),
            "minus_bp": group.minus_baseline_in(groups),
            "best_test_accuracy": _plain(group.best_test),
            "test_loss": _plain(group.result("test_loss")),
            "train_loss": _plain(group.result("train_loss")),
            "samples_per_s": _plain(group.result("samples_per_s")),
            "train_s": _plain(group.result("train_s")),
            "runs": [
                {
                    "name": run.name,
                    "seed": run.seed,
                    "state": run.state,
                    "final_test_accuracy": run.final_test,
                    "best_test_accuracy": run.best_test and run.best_test["accuracy"],
                }
                for run in group.runs
            ],
        }
        for group in groups
    ]


def _plain(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else spread.to_json()
