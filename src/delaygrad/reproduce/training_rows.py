"""Rows of results.json and cells of the tables of a training target."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from delaygrad.reproduce.plan import PlannedRun, Series
from delaygrad.reproduce.target import Published, Sources
from delaygrad.results.curves import DIRECTIONS
from delaygrad.results.group import RunGroup
from delaygrad.results.run import Run
from delaygrad.results.spread import MISSING, Spread, spread_text

HEADINGS = (
    "method", "K", "seeds", "final test accuracy, %", "best, %", "final minus BP's",
    "within BP's sd", "last epoch's training loss", "s per epoch, one process", "published",
)  # fmt: skip
DIRECTION_HEADINGS = (
    "run", "stage", "delay", "probes", "mean", "first", "least", "share above 0", "mean cosine",
    "mean staleness ratio",
)  # fmt: skip
_LEAST_SEEDS = 3  # a standard deviation of fewer says nothing
_ENVIRONMENT = (
    "delaygrad", "torch", "python", "system", "processor", "cpu_count", "accelerator", "commit",
)  # fmt: skip


def nameless(environment: dict[str, Any]) -> dict[str, Any]:
    """Keep of an environment what arithmetic and time depend on, and no names."""
    return {name: environment[name] for name in _ENVIRONMENT if name in environment}


def series_row(
    series: Series, group: RunGroup, groups: Sequence[RunGroup], planned: Sequence[PlannedRun]
) -> dict[str, Any]:
    baseline = group.baseline_in([one for one in groups if one.finished])
    spread = None if baseline is None else baseline.spread("final_accuracy")
    return {
        **vars(series),
        "series": series.slug,
        "title": series.title,
        "planned": sum(run.series == series for run in planned),
        "done": len(group.finished) + group.count("diverged"),
        "diverged": group.count("diverged"),
        **group.to_json([one for one in groups if one.finished]),
        "bp_sd": None if spread is None else spread.sd,
    }


def run_row(planned: PlannedRun, run: Run) -> dict[str, Any]:
    best, diverged = run.best_test, run.state == "diverged"
    return {
        "name": run.name,
        "series": planned.series.slug,
        "seed": planned.seed,
        "diverged_at_epoch": float(run.events[-1]["epoch"]) if diverged else None,
        "epochs": run.epochs,
        "final_accuracy": run.final_accuracy,
        "best_accuracy": None if best is None else 100 * best["accuracy"],
        "best_epoch": None if best is None else best["epoch"],
        "train_loss": run.train_loss,
        "test_loss": run.test_loss,
        "epoch_s": run.epoch_s,
        "parameters_sha256": (run.summary or {}).get("parameters_sha256", ""),
    }


def direction_rows(run: Run) -> list[dict[str, Any]]:
    """Return for each stage what the probes have found."""
    probes, rows = run.of_kind("direction"), []
    for k in range(run.num_stages if probes else 0):
        own = [probe["stages"][k] for probe in probes]
        constants = [stage["sufficient_direction"] for stage in own]
        rows.append(
            {
                "run": run.name,
                "stage": k,
                "delay": own[0]["delay"],
                "probes": len(own),
                "first": constants[0],
                "least": min(constants),
                "positive_share": sum(c > 0 for c in constants) / len(constants),
                **{name: statistics.fmean(stage[name] for stage in own) for name in DIRECTIONS},
            }
        )
    return rows


def series_cells(
    row: Mapping[str, Any], published: Sequence[Published], sources: Sources
) -> list[str]:
    own = [
        number
        for number in published
        if not row["variant"]
        and number.recipe in ("", row["recipe"])
        and all(getattr(number, name) == row[name] for name in ("problem", "method", "stages"))
    ]
    done, planned = row["done"], row["planned"]
    lost = f" ({row['diverged']} diverged)" if row["diverged"] else ""
    return [
        row["title"],
        str(row["stages"]),
        f"{done}{'' if done == planned else f' of {planned}'}{lost}",
        _shown(row["final_accuracy"], 2),
        _shown(row["best_accuracy"], 2),
        _shown(row["minus_bp"], 2, sign=True),
        _within(row),
        _shown(row["train_loss"], 4),
        _shown(row["epoch_s"], 1),
        sources.quote(own),
    ]


def _shown(values: dict[str, Any] | None, decimals: int, *, sign: bool = False) -> str:
    return spread_text(Spread(**values) if values else None, decimals, sign=sign)


def _within(row: Mapping[str, Any]) -> str:
    if row["minus_bp"] is None or row["minus_bp"]["n"] < _LEAST_SEEDS:
        return MISSING
    return "yes" if abs(row["minus_bp"]["mean"]) <= row["bp_sd"] else "no"


def direction_cells(row: Mapping[str, Any]) -> list[str]:
    numbers = (
        row["sufficient_direction"], row["first"], row["least"], row["cosine"],
        row["staleness_ratio"],
    )  # fmt: skip
    mean, first, least, cosine, ratio = (f"{number:.3f}" for number in numbers)
    names = [row["run"], str(row["stage"]), str(row["delay"]), str(row["probes"])]
    return [*names, mean, first, least, f"{row['positive_share']:.0%}", cosine, ratio]
