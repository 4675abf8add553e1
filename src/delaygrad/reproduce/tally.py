"""Results of runs, from their folders alone; and of the same with different seeds, together."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delaygrad.errors import DataError
from delaygrad.records import read_events
from delaygrad.reproduce import run_state
from delaygrad.reproduce.plan import PlannedRun, Series
from delaygrad.training import run_folder

BASELINE = "bp"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What came out of a run.

    Attributes:
        name: of its folder.
        series: what it belongs to.
        seed: its own.
        diverged_at_epoch: None if it did not.
        epochs: done.
        final_accuracy: percent of the test set, after the last epoch; None if it diverged.
        best_accuracy: percent, the best of all evaluations on the test set; None without one.
        best_epoch: of that evaluation.
        train_loss: mean over the last epoch; None if it diverged.
        test_loss: after the last epoch; None if it diverged.
        epoch_s: seconds of training per epoch, in one process; evaluations are not counted.
        parameters_sha256: of the final network; "" if it diverged.
        events: its records.
    """

    name: str
    series: Series
    seed: int
    diverged_at_epoch: float | None
    epochs: float
    final_accuracy: float | None
    best_accuracy: float | None
    best_epoch: float | None
    train_loss: float | None
    test_loss: float | None
    epoch_s: float | None
    parameters_sha256: str
    events: list[dict[str, Any]] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the events."""
        values = {name: value for name, value in vars(self).items() if name != "events"}
        return {**values, "series": self.series.slug}


def results_of(runs: Sequence[PlannedRun]) -> list[RunResult]:
    """Read the results that are there."""
    done = [run for run in runs if run_state.state_of(run.run_dir) in ("finished", "diverged")]
    return [_result(run) for run in done]


def _result(run: PlannedRun) -> RunResult:
    try:
        return _read_result(run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the records of a run are damaged ({run.run_dir}: {type(error).__name__}: {error}); "
            "move the run away, and the same command makes it anew"
        ) from error


def _read_result(run: PlannedRun) -> RunResult:
    run_dir: Path = run.run_dir
    diverged = run_state.divergence(run_dir)
    events = read_events(run_dir / run_folder.RECORDS)
    training = [event for event in events if event["event"] == "training"]
    tests = [e for e in events if e["event"] == "evaluation" and e["split"] == "test"]
    best = max(tests, key=lambda event: float(event["accuracy"]), default=None)
    summary: dict[str, Any] = {}
    if diverged is None:
        summary = json.loads((run_dir / run_folder.SUMMARY).read_text(encoding="utf-8"))
        for name in ("test_accuracy", "epochs"):
            if not math.isfinite(summary[name]):
                raise ValueError(f"{name} is {summary[name]}")
    done = [event["epoch"] for event in events if "epoch" in event]
    epochs = float(summary.get("epochs", max(done, default=0.0)))
    return RunResult(
        name=run.name,
        series=run.series,
        seed=run.seed,
        diverged_at_epoch=None if diverged is None else float(diverged["epoch"]),
        epochs=epochs,
        final_accuracy=100 * summary["test_accuracy"] if summary else None,
        best_accuracy=100 * best["accuracy"] if best else None,
        best_epoch=best["epoch"] if best else None,
        train_loss=_loss_of_last_epoch(training, epochs) if summary else None,
        test_loss=summary.get("test_loss"),
        epoch_s=_epoch_s(training, run.config.batch_size),
        parameters_sha256=summary.get("parameters_sha256", ""),
        events=events,
    )


def _loss_of_last_epoch(training: list[dict[str, Any]], epochs: float) -> float | None:
    losses = [event["loss"] for event in training if event["epoch"] > epochs - 1]
    return statistics.fmean(losses) if losses else None


def _epoch_s(training: list[dict[str, Any]], batch_size: int) -> float | None:
    """Say how long an epoch takes at the throughput that the run reported last."""
    if not training:
        return None
    last = training[-1]
    samples = batch_size * last["iteration"] / last["epoch"]  # of an epoch
    return float(samples / last["samples_per_s"])


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Return mean, sample standard deviation (None for a single value) and count.

    Example:
        >>> spread([1.0, 3.0])
        {'mean': 2.0, 'sd': 1.4142135623730951, 'n': 2}
    """
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values)}


def tally(planned: Sequence[PlannedRun], results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """Put together what differs in the seed only.

    Means are over the runs that did not diverge; how many did is beside them. The difference to
    backpropagation is taken seed by seed (a seed is the same initial weights and order of data),
    then averaged.

    Args:
        planned: all runs, for the order of the rows and for how many there should be.
        results: of those that are done.

    Returns:
        A row per series, in plain values.
    """
    rows = []
    for series in dict.fromkeys(run.series for run in planned):
        own = [result for result in results if result.series == series]
        baseline = _baseline_of(series, results)
        rows.append(
            {
                **vars(series),
                "series": series.slug,
                "title": series.method_title,
                "planned": sum(run.series == series for run in planned),
                "done": len(own),
                "diverged": sum(result.diverged_at_epoch is not None for result in own),
                "final_accuracy": spread(_values(own, "final_accuracy")),
                "best_accuracy": spread(_values(own, "best_accuracy", finished=True)),
                "train_loss": spread(_values(own, "train_loss")),
                "test_loss": spread(_values(own, "test_loss")),
                "epoch_s": spread(_values(own, "epoch_s", finished=True)),
                "minus_bp": _difference(own, baseline) if series.method != BASELINE else None,
                "bp_sd": (spread(_values(baseline, "final_accuracy")) or {}).get("sd"),
            }
        )
    return rows


def _values(results: Sequence[RunResult], name: str, *, finished: bool = False) -> list[float]:
    """Return the finite values there are; with ``finished``, of runs that did not diverge."""
    chosen = [r for r in results if not (finished and r.diverged_at_epoch is not None)]
    values = [getattr(result, name) for result in chosen]
    return [value for value in values if value is not None and math.isfinite(value)]


def _baseline_of(series: Series, results: Sequence[RunResult]) -> list[RunResult]:
    """Find backpropagation on the same problem with the same recipe."""
    found = [
        result
        for result in results
        if result.series.method == BASELINE
        and (result.series.problem, result.series.recipe) == (series.problem, series.recipe)
    ]
    least = min((result.series.stages for result in found), default=1)
    return [result for result in found if result.series.stages == least]


def _difference(own: Sequence[RunResult], baseline: Sequence[RunResult]) -> dict[str, Any] | None:
    known = {r.seed: r.final_accuracy for r in baseline if r.final_accuracy is not None}
    return spread(
        [
            result.final_accuracy - known[result.seed]
            for result in own
            if result.final_accuracy is not None and result.seed in known
        ]
    )
