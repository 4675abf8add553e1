"""Samples until a loss, times seconds per sample, and the sentence that follows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from recorded_runs import record_run

from delaygrad.results.group import RunGroup, group_runs
from delaygrad.results.run import read_runs
from delaygrad.results.time_to_loss import (
    TimeToLoss,
    recommendation,
    samples_to,
    target_loss,
    time_panel,
    time_table,
    times_to_loss,
)

# A recorded run: batches of 128, 10 iterations an epoch, losses 2.5 exp(-epoch) twice an epoch, of
# which an epoch's mean is drawn at its end.
MEANS = [1.25 * (math.exp(-(n - 0.5)) + math.exp(-n)) for n in (1, 2, 3, 4)]


@pytest.fixture
def groups(tmp_path: Path) -> tuple[RunGroup, ...]:
    bp = [record_run(tmp_path / f"bp{seed}", method="bp", seed=seed) for seed in (0, 1)]
    ddg = [record_run(tmp_path / f"ddg{lr}", stages=2, lr=lr) for lr in (0.1, 0.2)]
    lost = record_run(tmp_path / "lost", stages=3, until=20, diverged=True)
    return group_runs(read_runs([*bp, *ddg, lost]))


def test_samples_are_read_off_the_curve_that_reports_draw(groups: tuple[RunGroup, ...]) -> None:
    run = groups[0].runs[0]
    assert samples_to(run, MEANS[0]) == 1 * 10 * 128
    assert samples_to(run, MEANS[3]) == 4 * 10 * 128
    middle = (MEANS[1] + MEANS[2]) / 2
    assert samples_to(run, middle) == pytest.approx(2.5 * 10 * 128)
    assert samples_to(run, 0.999 * MEANS[3]) is None


def test_the_loss_is_relative_to_the_best_backpropagation(groups: tuple[RunGroup, ...]) -> None:
    assert target_loss(groups, 0.1) == pytest.approx(1.1 * MEANS[3])
    assert target_loss([group for group in groups if group.method != "bp"], 0.1) is None
    assert target_loss(groups, 100.0) is None  # has not fallen that far


def test_methods_count_with_their_best_recipe_and_pipelines_with_the_samples_of_bp(
    groups: tuple[RunGroup, ...],
) -> None:
    seconds = {"BP": 3.0, "DDG K=2": 1.0, "DDG K=3": 0.5}
    times = times_to_loss(groups, seconds, {"a pipeline": 2.0}, MEANS[1])
    samples = 2 * 10 * 128
    assert [(one.name, one.kind, one.seconds) for one in times] == [
        ("DDG K=2", "delayed", samples * 1.0),
        ("a pipeline", "synchronous", samples * 2.0),
        ("BP", "baseline", samples * 3.0),
        ("DDG K=3", "delayed", None),  # diverged
    ]
    table = time_table(times, MEANS[1])
    cells = [(row[0], row[1], row[-1]) for row in table.rows]
    assert cells[0] == ("DDG K=2 (lr 0.1)", "1 of 1", "3.00")
    assert cells[2:] == [("BP (lr 0.1)", "2 of 2", "1.00"), ("DDG K=3 (lr 0.1)", "0 of 1", "–")]
    assert recommendation(times, MEANS[1]).startswith("Use DDG K=2 (lr 0.1): it reaches the")
    assert "1.50" not in recommendation(times, 1.0) and "2.00 times" in recommendation(times, 1.0)


def alone(name: str, kind: str, sample_s: float | None, samples: float = 100.0) -> TimeToLoss:
    from delaygrad.records.spread import spread_of

    return TimeToLoss(
        name=name, recipe="", kind=kind, reached=1, runs=1, samples=spread_of([samples]),
        sample_s=sample_s,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("delayed_s", "beginning", "contained"),
    [
        (0.8, "Use DDG: ", "1.25 times sooner than 1F1B and 2.50 times sooner than BP"),
        (0.97, "Use 1F1B: ", "DDG takes 0.97 times as long"),  # not worth another arithmetic
        (1.5, "Use 1F1B: ", "DDG takes 1.50 times as long"),
        (None, "Use 1F1B: ", "no method of delayed gradients reaches that loss"),
    ],
)
def test_the_sentence_says_which_to_use_also_when_it_is_not_ours(
    delayed_s: float | None, beginning: str, contained: str
) -> None:
    times = [alone("BP", "baseline", 2.0), alone("1F1B", "synchronous", 1.0)]
    times.append(alone("DDG", "delayed", delayed_s))
    sentence = recommendation(times, 0.5)
    assert sentence.startswith(beginning) and contained in sentence
    assert recommendation(times[2:], 0.5).startswith("No verdict")


def test_every_seed_of_the_best_backpropagation_reaches_the_loss(tmp_path: Path) -> None:
    folders = [record_run(tmp_path / f"bp{seed}", method="bp", seed=seed) for seed in (0, 1)]
    events = [json.loads(line) for line in (folders[1] / "records.jsonl").read_text().splitlines()]
    for event in events:
        event["loss"] *= 1.5
    (folders[1] / "records.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    groups = group_runs(read_runs(folders))
    loss = target_loss(groups, 0.0)
    assert loss == pytest.approx(1.5 * MEANS[3])
    (found,) = times_to_loss(groups, {"BP": 1.0}, {}, loss or 0.0)
    assert (found.reached, found.runs) == (2, 2)
    panel = time_panel([found])
    assert panel is not None and "BP: baseline" in panel.description
    assert time_panel([alone("DDG", "delayed", None)]) is None
