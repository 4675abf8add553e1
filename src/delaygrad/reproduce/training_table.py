"""The tables of a training target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from delaygrad.reproduce.published import Published, Sources
from delaygrad.reproduce.text_table import TableSheet, TextTable
from delaygrad.reproduce.training_target import TrainingTarget

_HEADINGS = (
    "method", "K", "seeds", "final test accuracy, %", "best, %", "final minus BP's",
    "within BP's sd", "last epoch's training loss", "s per epoch, one process", "published",
)  # fmt: skip
_DIRECTION = (
    "run", "stage", "delay", "probes", "mean", "first", "least", "share above 0", "mean cosine",
    "mean staleness ratio",
)  # fmt: skip
_LEAST_SEEDS = 3  # a standard deviation of fewer says nothing


def training_tables(results: dict[str, Any], target: TrainingTarget) -> TableSheet:
    """Make the tables of what ``results.json`` holds.

    Args:
        results: with ``rows`` from ``tally`` and, perhaps, ``direction``.
        target: what it belongs to.
    """
    sources, tables = Sources(), []
    groups = dict.fromkeys((row["problem"], row["recipe"]) for row in results["rows"])
    for problem, recipe in groups:
        rows = [r for r in results["rows"] if (r["problem"], r["recipe"]) == (problem, recipe)]
        titles = [target.problems[problem].title] if problem else []
        title = ", ".join([*titles, target.recipes[recipe].title])
        cells = [_cells(row, target.published, sources) for row in rows]
        tables.append(TextTable(title, _HEADINGS, cells))
    if results.get("direction"):
        title = "Sufficient direction constant of each stage, over the probes"
        cells = [_direction_cells(row) for row in results["direction"]]
        tables.append(TextTable(title, _DIRECTION, cells))
    explained = (
        "Mean ± sample standard deviation over the seeds, without runs that diverged. Final: after "
        "the last epoch; best: the best epoch on the test set, as papers report it. Differences "
        "to BP are taken seed by seed. Seconds are of training alone, all stages in turn in one "
        "process, beside other runs on the same machine."
    )
    return TableSheet(tables, [explained, *sources.notes()])


def shown(spread: dict[str, Any] | None, digits: int, *, sign: bool = False) -> str:
    """Show mean and standard deviation.

    Example:
        >>> shown({"mean": 1.0, "sd": 0.25, "n": 3}, 2), shown(None, 2)
        ('1.00 ± 0.25', '-')
    """
    if spread is None:
        return "-"
    mean = f"{spread['mean']:{'+' if sign else ''}.{digits}f}"
    return mean if spread["sd"] is None else f"{mean} ± {spread['sd']:.{digits}f}"


def _cells(row: dict[str, Any], published: Sequence[Published], sources: Sources) -> list[str]:
    seeds = (
        f"{row['done']}" if row["done"] == row["planned"] else f"{row['done']} of {row['planned']}"
    )
    if row["diverged"]:
        seeds += f" ({row['diverged']} diverged)"
    return [
        row["title"],
        str(row["stages"]),
        seeds,
        shown(row["final_accuracy"], 2),
        shown(row["best_accuracy"], 2),
        shown(row["minus_bp"], 2, sign=True),
        _within(row),
        shown(row["train_loss"], 4),
        shown(row["epoch_s"], 1),
        "; ".join(sources.quote(number) for number in published if _is_of(number, row)) or "-",
    ]


def _within(row: dict[str, Any]) -> str:
    if row["minus_bp"] is None or row["minus_bp"]["n"] < _LEAST_SEEDS:
        return "-"
    return "yes" if abs(row["minus_bp"]["mean"]) <= row["bp_sd"] else "no"


def _is_of(number: Published, row: dict[str, Any]) -> bool:
    same = (number.problem, number.method, number.stages) == (
        row["problem"], row["method"], row["stages"],
    )  # fmt: skip
    return same and not row["variant"] and number.recipe in ("", row["recipe"])


def _direction_cells(row: dict[str, Any]) -> list[str]:
    return [
        row["run"],
        str(row["stage"]),
        str(row["delay"]),
        str(row["probes"]),
        f"{row['sufficient_direction']:.3f}",
        f"{row['first']:.3f}",
        f"{row['least']:.3f}",
        f"{row['positive_share']:.0%}",
        f"{row['cosine']:.3f}",
        f"{row['staleness_ratio']:.3f}",
    ]
