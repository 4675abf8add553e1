"""What is published holds no path and no name of the machine, and is a run folder still."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from targets import by_name, record, write_target

from delaygrad.errors import ConfigError
from delaygrad.reproduce.outcome import training_outcome
from delaygrad.reproduce.plan import planned_runs
from delaygrad.reproduce.publish import publish
from delaygrad.training import load_config


def test_published_records_are_scrubbed(tmp_path: Path) -> None:
    target = write_target(tmp_path / "experiments")
    folder = tmp_path / "out"
    runs = planned_runs(target, "smoke", folder)
    named = by_name(runs)
    finished = record(named["sgd-bp-k1-seed0"], [0.7], data="cifar10", data_dir="/elsewhere/cifar")
    record(named["sgd-ddg-k2-seed0"], [0.7], diverged=True)
    (record(named["sgd-ddg-k3-seed0"], [0.7]) / "summary.json").unlink()  # goes on
    for name in ("model.safetensors", "runner.log", "planned.json"):
        (finished / name).write_text(str(tmp_path))
    (folder / "measured").mkdir()
    (folder / "measured" / "case.json").write_text(
        '{"contest": {"variables": {"LD_PRELOAD": "/elsewhere/lib.so"}, "rounds": 5}}'
    )
    training_outcome(target, "smoke", runs, folder, [])

    old = target.folder / "records" / "smoke" / "old-run"
    old.mkdir(parents=True)
    goal = publish(target, "smoke", folder, runs)

    assert goal == target.folder / "records" / "smoke"
    assert sorted(path.name for path in goal.iterdir()) == [
        "curves.png", "measured", "results.json", "sgd-bp-k1-seed0", "sgd-ddg-k2-seed0", "table.md",
    ]  # fmt: skip
    files = sorted(p.name for p in (goal / "sgd-bp-k1-seed0").iterdir())
    assert files == ["config.json", "records.jsonl", "summary.json"]
    files = sorted(p.name for p in (goal / "sgd-ddg-k2-seed0").iterdir())
    assert files == ["config.json", "records.jsonl"]
    for path in goal.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md"):
            text = path.read_text()
            for secret in (str(tmp_path), "/elsewhere", "somebodys-laptop"):
                assert secret not in text, path
    config = load_config(goal / "sgd-bp-k1-seed0" / "config.json")
    assert config.data_dir == Path("data/cifar10")
    assert config.run_dir == Path("experiments/paper-small/records/smoke/sgd-bp-k1-seed0")
    summary = json.loads((goal / "sgd-bp-k1-seed0" / "summary.json").read_text())
    assert summary["run_dir"] == "experiments/paper-small/records/smoke/sgd-bp-k1-seed0"
    assert "curves" not in summary
    environment = json.loads((goal / "sgd-bp-k1-seed0" / "config.json").read_text())["environment"]
    assert environment == {"torch": "2.13.0", "system": "Linux"}


def test_nothing_is_not_published(tmp_path: Path) -> None:
    target = write_target(tmp_path / "experiments")
    with pytest.raises(ConfigError, match="nothing to publish"):
        publish(target, "smoke", tmp_path / "out", [])
