"""What is drawn: points that all seeds share, and which time an epoch is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from targets import by_name, record, runs_of

from delaygrad.reproduce.curves_figure import (
    accuracy_curve,
    epoch_seconds,
    time_label,
    training_curve,
)
from delaygrad.reproduce.speed_up import SpeedUp
from delaygrad.reproduce.tally import results_of


def test_curves_are_means_with_extremes_over_the_seeds(tmp_path: Path) -> None:
    runs = by_name(runs_of(tmp_path))
    record(runs["sgd-bp-k1-seed0"], [0.5, 0.6, 0.7, 0.8], losses=(4.0, 2.0))
    record(runs["sgd-bp-k1-seed1"], [0.3, 0.8, 0.7, 0.8], losses=(2.0, 1.0))
    results = results_of(list(runs.values()))
    accuracy = accuracy_curve(results)
    assert accuracy.x == [1.0, 2.0, 3.0, 4.0]
    assert accuracy.middle == pytest.approx([40.0, 70.0, 70.0, 80.0])
    assert (accuracy.low[0], accuracy.high[0]) == (30.0, 50.0)
    loss = training_curve(results)  # a point per epoch: (4 + 2) / 2 and (2 + 1) / 2, over the epoch
    assert loss.x == [1.0, 2.0, 3.0, 4.0]
    assert loss.middle == pytest.approx([(3 + 1.5) / 2 / n for n in (1, 2, 3, 4)])


def test_short_runs_are_drawn_as_recorded(tmp_path: Path) -> None:
    run = runs_of(tmp_path)[0]
    record(run, [0.5], losses=(4.0, 2.0))
    curve = training_curve(results_of([run]))
    assert (curve.x, curve.middle) == ([0.5, 1.0], [4.0, 2.0])
    assert training_curve([]).x == []


def test_time_is_measured_in_one_process_or_projected_where_the_speed_up_is_known(
    tmp_path: Path,
) -> None:
    runs = by_name(runs_of(tmp_path))
    for name, samples_per_s in (("bp-k1", 100.0), ("ddg-k2", 80.0), ("ddg-k3", 50.0)):
        record(runs[f"sgd-{name}-seed0"], [0.5, 0.6], samples_per_s=samples_per_s)
    results = results_of(list(runs.values()))
    bp, two, three = (result.series for result in results)
    assert [epoch_seconds(s, results, {}) for s in (bp, two, three)] == [10.0, 12.5, 20.0]
    known = {2: SpeedUp(value=1.6, how="measured")}
    assert [epoch_seconds(s, results, known) for s in (bp, two, three)] == [10.0, 6.25, None]
    assert "one process" in time_label({})
    assert "K = 2 measured" in time_label(known)
