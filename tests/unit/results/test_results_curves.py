"""The curves are the records, averaged as the caption says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import PER_EPOCH, record_run

from delaygrad.results import RunGroup, group_runs, read_run
from delaygrad.results.curves import (
    Measure,
    by_epoch,
    directions,
    elapsed_axis,
    epoch_panels,
    group_line,
    measures_of,
    minus_baseline,
    time_panels,
)
from delaygrad.results.group import by_recipe
from delaygrad.results.lines import Line

ACCURACY, LOSS = Measure("test", "accuracy"), Measure("train", "loss")


def groups_of(*folders: Path) -> tuple[RunGroup, ...]:
    return group_runs([read_run(folder) for folder in folders])


def line_of(group: RunGroup, measure: Measure) -> Line:
    return group_line(group, [measure.curve(run) for run in group.drawn], by_epoch)


def test_points_are_those_of_the_records(tmp_path: Path) -> None:
    (group,) = groups_of(record_run(tmp_path / "a", accuracy=0.8))
    accuracy = line_of(group, ACCURACY)
    assert (accuracy.x, accuracy.y) == ([1.0, 2.0, 3.0, 4.0], [20.0, 40.0, 60.0, 80.0])
    assert accuracy.low == accuracy.high == ()
    times = [p.elapsed_s for p in ACCURACY.curve(group.runs[0]).values()]
    assert times == [2.0 * PER_EPOCH * epoch for epoch in (1, 2, 3, 4)]
    # Training losses are averaged over each epoch: recorded at its middle and its end.
    loss = line_of(group, LOSS)
    assert loss.x == [1.0, 2.0, 3.0, 4.0]
    assert loss.y[0] == pytest.approx(2.5 * (math.exp(-0.5) + math.exp(-1)) / 2)
    assert line_of(group, Measure("test", "loss")).y[0] == pytest.approx(2.5 * math.exp(-1) + 0.1)


def test_lines_are_means_of_finished_runs_with_a_standard_deviation(tmp_path: Path) -> None:
    (group,) = groups_of(
        record_run(tmp_path / "a", seed=0, accuracy=0.8),
        record_run(tmp_path / "b", seed=1, accuracy=0.6),
        record_run(tmp_path / "c", seed=2, accuracy=0.1, until=20, diverged=True),
    )
    line = line_of(group, ACCURACY)
    assert line.y == pytest.approx([17.5, 35.0, 52.5, 70.0])
    sd = [math.sqrt(2) * 2.5 * epoch for epoch in (1, 2, 3, 4)]  # of mean ± 2.5 epoch
    assert line.low == pytest.approx([m - s for m, s in zip(line.y, sd, strict=True)])
    assert line.high == pytest.approx([m + s for m, s in zip(line.y, sd, strict=True)])
    assert line.label == "DDG K=1 (1 of 3 diverged)" and not line.broken


def test_where_none_has_finished_the_line_goes_as_far_as_all(tmp_path: Path) -> None:
    (group,) = groups_of(
        record_run(tmp_path / "a", seed=0, until=20, diverged=True),
        record_run(tmp_path / "b", seed=1, until=30, diverged=True),
    )
    line = line_of(group, ACCURACY)
    assert line.x == [1.0, 2.0] and line.broken


def test_differences_are_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    bp, ddg = groups_of(
        record_run(tmp_path / "a", method="bp", seed=0, accuracy=0.8),
        record_run(tmp_path / "b", method="bp", seed=1, accuracy=0.6),
        record_run(tmp_path / "c", stages=2, seed=1, accuracy=0.4),
        record_run(tmp_path / "d", stages=2, seed=5, accuracy=0.4),
    )
    line = group_line(ddg, minus_baseline(ACCURACY, ddg, bp), by_epoch)
    assert line.y == pytest.approx([-5.0, -10.0, -15.0, -20.0])  # of seed 1 alone
    titles = [panel.description.split(",")[0] for panel in epoch_panels([bp, ddg])]
    assert titles[-1] == "Line plot: test accuracy minus BP's (points)"
    assert len(epoch_panels([bp])) == len(titles) - 1


def test_validation_takes_the_place_of_a_lone_test(tmp_path: Path) -> None:
    groups = groups_of(record_run(tmp_path / "a", split="validation"))
    assert [measure.label for measure in measures_of(groups)] == [
        "train loss (nats)", "validation loss (nats)", "validation accuracy (%)",
    ]  # fmt: skip
    assert "elapsed time (s)" in time_panels(groups, elapsed_axis(groups))[0].description


def test_records_of_a_long_short_run_are_averaged(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", until=5)
    events = [
        {"event": "training", "iteration": i, "epoch": i / 1000, "loss": float(i), "elapsed_s": i}
        for i in range(601)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (group,) = groups_of(folder)
    line = line_of(group, LOSS)
    assert len(line.x) == math.ceil(601 / 3) and line.y[0] == 1.0 and line.x[0] == 0.002


def test_each_recipe_has_its_own_panels(tmp_path: Path) -> None:
    folders = [
        record_run(tmp_path / f"{method}-{optimizer}", method=method, optimizer=optimizer)
        for optimizer in ("sgd", "adam")
        for method in ("bp", "ddg")
    ]
    found = by_recipe(groups_of(*folders))
    assert list(found) == ["sgd", "adam"]
    for members in found.values():
        assert "BP ends at 70; DDG K=1 ends at 70" in epoch_panels(members)[2].description
    begun = record_run(tmp_path / "b", until=5)
    (begun / "records.jsonl").unlink()
    assert measures_of(groups_of(begun)) == []


def test_direction_constants_are_those_of_the_records(reported: Any) -> None:
    run = read_run(reported.folders[2])
    for stage, delay in enumerate((2, 1, 0)):  # sigma = 1 - 0.1 delay epoch
        curve = directions(run, stage, "sufficient_direction")
        assert [(p.epoch, p.value) for p in curve.values()] == [
            (float(epoch), 1 - 0.1 * delay * epoch) for epoch in (1, 2, 3, 4)
        ]
    labels = [t.text for svg in reported.page.all("svg") for t in svg.all("text")]
    for label in ("stage 0, delay 2", "stage 1, delay 1", "stage 2, delay 0"):
        assert labels.count(label) == 3
