"""Runs that differ in their seed alone are one group, with a label of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from recorded_runs import record_run

from delaygrad.results import RunGroup, group_runs, read_run
from delaygrad.results.group import by_recipe


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
    final = group.spread("final_accuracy")
    assert final is not None and (final.mean, final.n) == (pytest.approx(70.5), 3)
    # By hand: deviations 0.7, -0.7, 0; squares sum to 0.98; over n - 1 = 2 is 0.49.
    assert final.sd == pytest.approx(0.7)
    losses = group.spread("test_loss")
    assert losses is not None and losses.sd == pytest.approx(0.007)


def test_means_are_over_finished_runs_and_one_has_no_spread(tmp_path: Path) -> None:
    (group,) = grouped(
        tmp_path,
        {"seed": 0, "accuracy": 0.7},
        {"seed": 1, "until": 20},
        {"seed": 2, "until": 20, "diverged": True},
    )
    for name in ("final_accuracy", "best_accuracy", "test_loss", "epoch_s"):
        found = group.spread(name)
        assert found is not None and (found.sd, found.n) == (None, 1)
    assert len(group.finished) == group.count("diverged") == group.count("unfinished") == 1


def test_what_does_not_change_the_result_does_not_part_runs(tmp_path: Path) -> None:
    (group,) = grouped(
        tmp_path,
        {},
        {"seed": 1, "data_dir": "/elsewhere", "log_every": 7, "trace": 50, "monitor_every": 9},
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
    assert all(group.baseline_in(groups) is groups[0] for group in groups[:2])
    assert all(group.baseline_in(groups) is groups[2] for group in groups[2:])


def test_the_baseline_is_backpropagation_on_the_fewest_stages(tmp_path: Path) -> None:
    groups = grouped(
        tmp_path,
        {"stages": 3, "accuracy": 0.69},
        {"method": "bp", "stages": 2, "accuracy": 0.72},
        {"method": "bp", "accuracy": 0.71},
    )
    assert [group.label for group in groups] == ["BP", "BP K=2", "DDG K=3"]
    assert minus(groups[2], groups) == (pytest.approx(-2.0), None, 1)
    assert minus(groups[2], groups[1:]) == (pytest.approx(-3.0), None, 1)
    assert minus(groups[2], groups[2:]) is None


def minus(group: RunGroup, groups: Sequence[RunGroup]) -> tuple[float, float | None, int] | None:
    found = group.minus_baseline_in(groups)
    return None if found is None else (found.mean, found.sd, found.n)


def test_differences_are_taken_seed_by_seed(tmp_path: Path) -> None:
    bp = [{"method": "bp", "seed": seed, "accuracy": 0.7 + 0.1 * seed} for seed in range(3)]
    ddg = [{"stages": 2, "seed": seed, "accuracy": 0.69 + 0.1 * seed} for seed in (0, 2)]
    groups = grouped(tmp_path, *bp, *ddg, {"stages": 2, "seed": 7, "accuracy": 0.1})
    assert minus(groups[1], groups) == (pytest.approx(-1.0), pytest.approx(0.0, abs=1e-9), 2)
    assert minus(groups[0], groups) is None
    assert grouped(tmp_path / "a", bp[0], {"stages": 2, "seed": 5})[1].minus_baseline_in([]) is None


def test_settings_that_nobody_foresaw_part_runs_too(tmp_path: Path) -> None:
    groups = grouped(tmp_path, {"new_setting": 1}, {"new_setting": [2, 3]}, {}, {"lr": 0.2})
    assert [group.label for group in groups] == [
        "DDG K=1, lr 0.1, new_setting 1",
        "DDG K=1, lr 0.1, new_setting 2 3",
        "DDG K=1, lr 0.1, new_setting not recorded",
        "DDG K=1, lr 0.2",
    ]


def test_the_first_colour_is_that_of_backpropagation(tmp_path: Path) -> None:
    assert [group.series for group in grouped(tmp_path, {"stages": 2}, {"stages": 3})] == [1, 2]
    assert group_runs([]) == ()
