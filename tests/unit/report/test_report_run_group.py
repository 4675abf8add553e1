"""Runs that differ in their seed alone are one group, with a label of its own."""

from __future__ import annotations

import json
import statistics
from dataclasses import fields
from pathlib import Path

import pytest
from recorded_runs import record_run

from delaygrad.report import RunGroup, group_runs, read_run
from delaygrad.report.run_group import (
    _BEFORE_IT_WAS_A_SETTING,
    _METHOD_AXES,
    _NO_PART_OF_THE_RECIPE,
    by_recipe,
)
from delaygrad.training.config import METHOD_OPTIONS, TrainConfig

ROOT = Path(__file__).parents[3]


def grouped(root: Path, *configs: dict[str, object]) -> tuple[RunGroup, ...]:
    return group_runs(
        [read_run(record_run(root / f"run{i}", **config)) for i, config in enumerate(configs)]  # type: ignore[arg-type]
    )


def test_seeds_make_a_group_with_mean_and_standard_deviation(tmp_path: Path) -> None:
    accuracies = [0.712, 0.698, 0.705]
    (group,) = grouped(
        tmp_path,
        *({"seed": 2 - seed, "accuracy": accuracies[seed]} for seed in range(3)),
    )
    assert [run.seed for run in group.runs] == [0, 1, 2]
    assert group.final_test is not None
    assert group.final_test.values == (0.705, 0.698, 0.712)
    assert group.final_test.mean == pytest.approx(0.705)
    # By hand: deviations 0.007, -0.007, 0; squares sum to 9.8e-5; over n - 1 = 2 is 4.9e-5.
    assert group.final_test.std == pytest.approx(0.007)
    losses = group.result("test_loss")
    assert losses is not None and losses.std == pytest.approx(
        statistics.stdev(1.1 - a for a in accuracies)
    )


def test_means_are_over_finished_runs_and_one_has_no_spread(tmp_path: Path) -> None:
    (group,) = grouped(
        tmp_path,
        {"seed": 0, "accuracy": 0.7},
        {"seed": 1, "until": 20},
        {"seed": 2, "until": 20, "diverged": True},
    )
    assert group.final_test is not None and group.final_test.values == (0.7,)
    assert group.final_test.std is None and len(group.finished) == 1
    assert group.best_test is not None and group.best_test.values == (0.7,)


def test_what_does_not_change_the_result_does_not_part_runs(tmp_path: Path) -> None:
    (group,) = grouped(
        tmp_path,
        {},
        {"seed": 1, "data_dir": "/elsewhere", "log_every": 7, "trace": 50, "probe_every": 9},
        {"seed": 2, "timeout_s": 5.0, "checkpoint_every": 0, "keep_checkpoints": 5},
    )
    assert len(group.runs) == 3


def test_a_run_from_before_a_setting_belongs_to_its_default(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "old", seed=1)
    old = (folder / "config.json").read_text().replace('"slack": 0, "micro_batches": 1, ', "")
    assert "slack" not in old
    (folder / "config.json").write_text(old)
    new = record_run(tmp_path / "new", weights="stash", label_conditioned=False)
    assert len(group_runs([read_run(folder), read_run(new)])) == 1
    live = record_run(tmp_path / "live", weights="live")
    assert len(group_runs([read_run(folder), read_run(live)])) == 2


def test_order_labels_and_colours(tmp_path: Path) -> None:
    groups = grouped(
        tmp_path,
        {"stages": 4, "optimizer": "adam"},
        {"stages": 4},
        {"stages": 2},
        {"method": "bp"},
        {"stages": 4, "weights": "live"},
        {"stages": 2, "method": "dni", "label_conditioned": True},
        {"stages": 2, "method": "bp", "optimizer": "adam"},
    )
    assert [group.label for group in groups] == [
        "BP K=2, adam",
        "DDG K=4, adam",
        "BP, sgd",
        "DDG K=2, sgd",
        "DDG K=4, sgd",
        "DDG live K=4, sgd",
        "DNI K=2, sgd",
    ]
    assert [group.series for group in groups] == [1, 3, 0, 2, 3, 4, 5]  # as in all recipes
    assert {recipe: len(found) for recipe, found in by_recipe(groups).items()} == {
        "adam": 2, "sgd": 5,
    }  # fmt: skip
    assert groups[1].baseline_in(groups) is groups[0]
    assert all(group.baseline_in(groups) is groups[2] for group in groups[3:])
    assert groups[0].baseline_in(groups) is groups[2].baseline_in(groups) is None


def test_the_baseline_is_backpropagation_on_the_fewest_stages(tmp_path: Path) -> None:
    groups = grouped(
        tmp_path,
        {"stages": 3, "accuracy": 0.69},
        {"method": "bp", "stages": 2, "accuracy": 0.72},
        {"method": "bp", "accuracy": 0.71},
    )
    assert [group.label for group in groups] == ["BP", "BP K=2", "DDG K=3"]
    assert groups[2].minus_baseline_in(groups) == pytest.approx(-0.02)
    assert groups[2].minus_baseline_in(groups[1:]) == pytest.approx(-0.03)
    assert groups[2].minus_baseline_in(groups[2:]) is None


def test_settings_that_nobody_foresaw_part_runs_too(tmp_path: Path) -> None:
    groups = grouped(tmp_path, {"new_setting": 1}, {"new_setting": [2, 3]}, {}, {"lr": 0.2})
    assert [group.label for group in groups] == [
        "DDG K=1, lr 0.1, new_setting 1",
        "DDG K=1, lr 0.1, new_setting 2 3",
        "DDG K=1, lr 0.1, new_setting not recorded",
        "DDG K=1, lr 0.2",
    ]


FIRST_SETTINGS = """
    data data_dir holdout augment model width depth heads context_length dropout channels_last
    method stages cuts runtime threads device timeout_s optimizer lr momentum nesterov
    weight_decay lr_schedule lr_milestones lr_factor warmup epochs iterations batch_size seed
    run_dir log_every evaluate_every evaluation_batch_size checkpoint_every keep_checkpoints
""".split()
"""What a run's ``config.json`` held when there were the first runs; nobody adds to it."""


def test_every_setting_newer_than_the_first_records_is_known_with_its_default() -> None:
    newer = {f.name: f.default for f in fields(TrainConfig) if f.name not in FIRST_SETTINGS}
    assert newer == _BEFORE_IT_WAS_A_SETTING  # a new setting needs a line there
    for path in ROOT.glob("experiments/*/records/*/*/config.json"):
        assert json.loads(path.read_text())["config"].keys() >= set(FIRST_SETTINGS)
    known = {f.name for f in fields(TrainConfig)}
    assert known >= _NO_PART_OF_THE_RECIPE and known >= set(_METHOD_AXES)
    assert set(METHOD_OPTIONS) <= set(_METHOD_AXES)


def test_the_first_colour_is_that_of_backpropagation(tmp_path: Path) -> None:
    assert [group.series for group in grouped(tmp_path, {"stages": 2}, {"stages": 3})] == [1, 2]
    assert group_runs([]) == ()
