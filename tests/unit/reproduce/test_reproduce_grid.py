"""From a target's lines to runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from targets import TRAINING, by_name, runs_of, write_target

from delaygrad.errors import ConfigError

PROBLEMS = """
[problems.one]
title = "One"
[problems.two]
title = "Two"
settings = { data = "cifar10", width = 32 }
"""


def test_runs_are_listed_seed_by_seed(tmp_path: Path) -> None:
    assert [run.name for run in runs_of(tmp_path)] == [
        "sgd-bp-k1-seed0",
        "adam-bp-k1-seed0",
        "sgd-ddg-k2-seed0",
        "sgd-ddg-k3-seed0",
        "sgd-bp-k1-seed1",
        "adam-bp-k1-seed1",
        "sgd-ddg-k2-seed1",
        "sgd-ddg-k3-seed1",
        "sgd-ddg-slack1-k3-seed1",
    ]


def test_settings_come_from_everywhere_the_narrower_wins(tmp_path: Path) -> None:
    text = TRAINING.replace(
        'about = "all of it"', 'about = ""\nsettings = { epochs = 7, lr = 0.2 }'
    )
    runs = by_name(runs_of(tmp_path, text))
    config = runs["sgd-ddg-slack1-k3-seed1"].config
    assert (config.run.epochs, config.optimizer.lr) == (7, 0.2)
    assert config.model.options()["width"] == 16 and config.method.options()["slack"] == 1
    assert (config.method.name, config.run.stages, config.run.seed) == ("ddg", 3, 1)
    assert config.run.cuts == ("linear2", "linear3")
    assert config.run_dir == tmp_path / "out" / "sgd-ddg-slack1-k3-seed1"
    assert runs["adam-bp-k1-seed0"].config.run.cuts == ()
    assert runs["adam-bp-k1-seed0"].config.optimizer.name == "adam"
    assert runs["adam-bp-k1-seed0"].label == "small/adam-bp-k1-seed0"


def test_problems_multiply_the_runs_and_name_the_data(tmp_path: Path) -> None:
    target = write_target(tmp_path / "experiments", TRAINING + PROBLEMS)
    runs = by_name(list(target.plan("smoke", tmp_path, Path("somewhere"))))
    assert len(runs) == 18
    assert runs["one-sgd-bp-k1-seed0"].config.data_dir is None  # digits are bundled
    assert runs["two-sgd-bp-k1-seed0"].config.data_dir == Path("somewhere")
    assert runs["two-sgd-bp-k1-seed0"].config.model.options()["width"] == 32
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    runs = by_name(list(target.plan("smoke", tmp_path, tmp_path / "data")))
    assert runs["two-sgd-bp-k1-seed0"].config.data_dir == tmp_path / "data" / "cifar10"


def test_a_line_may_name_its_variant(tmp_path: Path) -> None:
    for variant, name in (("default", "sgd-ddg-k3-seed1"), ("late", "sgd-ddg-late-k3-seed1")):
        text = TRAINING.replace("slack = 1", f'slack = 1, variant = "{variant}"')
        text = text.replace("stages = [2, 3]", "stages = [2]")
        assert by_name(runs_of(tmp_path, text))[name].config.method.options()["slack"] == 1


def test_a_line_may_choose_problems(tmp_path: Path) -> None:
    text = TRAINING.replace('method = "bp"', 'problems = ["two"], method = "bp"') + PROBLEMS
    names = by_name(runs_of(tmp_path, text))
    assert "two-sgd-bp-k1-seed0" in names
    assert "one-sgd-bp-k1-seed0" not in names


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3 = [", "5 = [", r"no cuts .*stages: 3\); add to its file, under \[cuts.mlp\]"),
        ("epochs = 2", "epoch = 2", r"unknown key in paper-small/target.toml .*'epochs'"),
        ("lr = 0.05", "lr = -1.0", r"wrong value in .*lr: -1.0"),
        (", slack = 1, seeds = [1]", "", r"paper-small/.* makes the same twice .*ddg-k3"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in TRAINING
    with pytest.raises(ConfigError, match=message):
        runs_of(tmp_path, TRAINING.replace(old, new, 1))
