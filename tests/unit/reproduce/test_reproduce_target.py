"""A target's file says what to run; what it says wrong is named, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from targets import MEMORY, SPEED, TRAINING, write_target

from delaygrad.errors import ConfigError
from delaygrad.reproduce.paper import find_targets
from delaygrad.reproduce.training import TrainingTarget


def test_target_is_read(tmp_path: Path) -> None:
    target = write_target(tmp_path)
    assert (target.paper, target.name, target.label) == ("paper", "small", "paper-small")
    assert isinstance(target, TrainingTarget)
    assert target.cuts["mlp"]["3"] == ("linear2", "linear3")
    assert target.published[0].value == 91.5


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (TRAINING, "[recipes.sgd]", "[recipe.sgd]", r"unknown key in .*\(key: 'recipe'\); did you"),
        (TRAINING, 'title = "SGD"', 'title_ = "SGD"', r"recipes.sgd \(key: 'title_'\); did you"),
        (TRAINING, 'reference = "nobody, nowhere"', "", r"target.toml lacks reference"),
        (TRAINING, "[settings]", 'paper = "x"\n[settings]', r"unknown key in .*\(key: 'paper'\)"),
        (TRAINING, "slack = 1", "slak = 1", r"scales.smoke.lines.3 \(key: 'slak'\); did you mean"),
        (TRAINING, 'recipes = ["sgd"]', 'recipes = ["sdg"]', r"unknown recipe in .*'sdg'"),
        (TRAINING, 'method = "bp"', 'method = "pb"', r"unknown method in .*lines.1 .*'pb'"),
        (TRAINING, "stages = [1]", "stages = [0]", r"stages must be at least 1 in .*stages: \[0\]"),
        (TRAINING, "stages = [1]", "stages = 1", r"wrong value in .*lines.1 \(stages: 1"),
        (TRAINING, 'kind = "training"', 'kind = "training_"', r"unknown kind in .*'training'"),
        (TRAINING, "value = 91.5", 'value = "91.5"', r"wrong value in .*published.1 \(value"),
        (TRAINING, 'mark = "read"', 'mark = "true"', r"unknown mark in .*known: read, recalled"),
        (TRAINING, 'source = "their table 1"', "", r"published.1 lacks source"),
        (SPEED, "[2]", "[]", r"scales.smoke makes nothing; give it"),
        (TRAINING, "[settings]", "[settings", r"cannot parse the target"),
        (SPEED, "resnet8", "resnet9", r"unknown workload in .*contests.1 .*did you mean 'resnet8'"),
        (
            SPEED,
            '"computing"',
            '"computing", contestants = ["ddg"]',
            r"needs bp and another",
        ),
        (SPEED, '"computing"', '"computing", contestants = ["bp", "x"]', r"unknown contestant \(x"),
        (SPEED, '"computing"', '"computing", forward_s = 1', r"forward_s is for sleeping stages"),
        (SPEED, "[2]", "[2, 2]", r"the same twice .*resnet8-computing-k2"),
        (SPEED, "resnet8", "sleep", r'workload sleep needs how = "sleeping"'),
        (MEMORY, "recompute", "recompote", r"unknown key .*did you mean 'recompute'"),
        (MEMORY, "[1, 2]", "[0]", r"stages: 0; expected int >= 1"),
    ],
)
def test_what_is_wrong_is_named(
    text: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert old in text
    with pytest.raises(ConfigError, match=message):
        write_target(tmp_path, text.replace(old, new, 1))


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    speed = write_target(tmp_path, SPEED, "paper-speed").plan("smoke", tmp_path, None)
    assert [one.name for one in speed] == ["resnet8-computing-k2"]
    memory = write_target(tmp_path, MEMORY, "paper-memory").plan("smoke", tmp_path, None)
    assert [one.name for one in memory] == [
        "resnet8-b4-ddg-cpu-k1", "resnet8-b4-ddg-cpu-k2", "resnet8-b4-ddg-recompute-cpu-k2",
    ]  # fmt: skip


def test_targets_of_a_paper_are_found(tmp_path: Path) -> None:
    for name in ("one-b", "one-a", "two-a"):
        write_target(tmp_path, name=name)
    (tmp_path / "one-c").mkdir()  # without a file
    assert [target.name for target in find_targets(tmp_path, "one")] == ["a", "b"]
    assert [target.name for target in find_targets(tmp_path, "one", ("one-b",))] == ["b"]
    with pytest.raises(ConfigError, match=r"unknown target of one \(target: 'x'\); known: a, b"):
        find_targets(tmp_path, "one", ("x",))
    with pytest.raises(ConfigError, match=r"nothing to reproduce .*found there: one-a, one-b, two"):
        find_targets(tmp_path, "three")
    with pytest.raises(ConfigError, match=r"nothing to reproduce .*--experiments FOLDER"):
        find_targets(tmp_path / "nowhere", "one")
