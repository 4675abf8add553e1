"""What is asked for is checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from targets import TRAINING, record, write_target

from delaygrad.errors import ConfigError, DataError, PartitionError
from delaygrad.reproduce import Reproduction, reproduce, status


def asked(tmp_path: Path, **more: Any) -> Reproduction:
    folders = {"experiments": tmp_path / "experiments", "output": tmp_path / "out"}
    return Reproduction(paper="paper", **{**folders, **more})


def test_scale_must_exist(tmp_path: Path) -> None:
    write_target(tmp_path / "experiments")
    write_target(tmp_path / "experiments", TRAINING.replace("smoke", "cpu"), "paper-other")
    assert [t.name for t in asked(tmp_path).found_targets()] == ["small"]
    with pytest.raises(ConfigError, match=r"no such scale \(scale: gpu, .*known: cpu, smoke"):
        asked(tmp_path, scale="gpu").found_targets()
    with pytest.raises(ConfigError, match=r"no such scale \(scale: smoke, targets: other\)"):
        asked(tmp_path, target=("small", "other")).found_targets()
    with pytest.raises(ConfigError, match=r"workers must be at least 1 \(workers: 0\)"):
        asked(tmp_path, workers=0)


def test_missing_data_are_told_once_and_nothing_starts(tmp_path: Path) -> None:
    text = TRAINING.replace('model = "mlp"', 'model = "mlp"\ndata = "cifar10"')
    write_target(tmp_path / "experiments", text)
    with pytest.raises(ConfigError, match=r"cifar10 needs its files; .*--data-dir"):
        reproduce(asked(tmp_path), quiet=True)
    with pytest.raises(DataError):
        reproduce(asked(tmp_path, data_dir=tmp_path), quiet=True)
    assert not (tmp_path / "out").exists()


def test_wrong_cuts_are_told_before_anything_starts(tmp_path: Path) -> None:
    text = TRAINING.replace('["linear2", "linear3"]', '["linear2", "linear33"]')
    write_target(tmp_path / "experiments", text)
    with pytest.raises(
        PartitionError, match=r"\[small/sgd-ddg-.*k3-.*\] unknown layer .*'linear33'"
    ):
        reproduce(asked(tmp_path), quiet=True)
    assert not (tmp_path / "out").exists()


def test_status_counts_what_is_done(tmp_path: Path) -> None:
    target = write_target(tmp_path / "experiments")
    request = asked(tmp_path)
    record(request.plan(target)[0], [0.5])
    (row,) = status(request)
    assert (row["target"], row["scale"], row["done"], row["planned"]) == ("small", "smoke", 1, 9)


def test_what_is_there_is_put_together_without_running_anything(tmp_path: Path) -> None:
    target = write_target(tmp_path / "experiments")
    request = asked(tmp_path, run=False, publish=True)
    assert reproduce(request, quiet=True)["small"]["runs"] == []
    assert not (target.folder / "records").exists()  # nothing to publish
    record(request.plan(target)[0], [0.5])
    assert len(reproduce(request, quiet=True)["small"]["runs"]) == 1
    assert (target.folder / "records" / "smoke" / "sgd-bp-k1-seed0" / "summary.json").exists()
