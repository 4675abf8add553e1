"""The runner makes what is missing; the runs themselves are played here."""

from __future__ import annotations

from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from targets import by_name, record, runs_of

from delaygrad.errors import ConfigError
from delaygrad.launch import fork_server
from delaygrad.reproduce import run_state, runner
from delaygrad.reproduce.grid import PlannedRun
from delaygrad.reproduce.target import Failure
from delaygrad.reproduce.training import TrainingTarget
from delaygrad.training import TrainConfig
from delaygrad.training.run_folder import RunLock

Started = list[tuple[str, str]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    """Processes that do nothing, for runs whose folders are filled at once; how they began."""
    calls: Started = []

    def play(run_dir: Path, config: TrainConfig | None, gpu: str | None) -> None:
        (run,) = (run for run in runs_of(tmp_path) if run.run_dir == run_dir)
        calls.append((run.name, "resume" if config is None else "train"))
        if run.name == "adam-bp-k1-seed0":
            (run_dir / run_state.LOG).write_text("delaygrad: the disk is full\n")
        elif config is None:
            (run_dir / "summary.json").write_text('{"test_accuracy": 0.5}')
        else:
            run_dir.rename(run_dir.with_suffix(".moved"))
            record(run, [0.5], diverged=run.name == "sgd-ddg-k3-seed0")

    context = fork_server()

    def process(target: Any, args: tuple[Any, ...]) -> BaseProcess:
        play(*args)
        return context.Process(target=int)

    monkeypatch.setattr(runner, "fork_server", lambda: SimpleNamespace(Process=process))
    return calls


def make(runs: list[PlannedRun], workers: int = 2) -> list[Failure]:
    return TrainingTarget.make(runs, workers, None)


def test_each_run_is_kept_resumed_or_begun_anew(tmp_path: Path, started: Started) -> None:
    runs = runs_of(tmp_path)
    named = by_name(runs)
    record(named["sgd-bp-k1-seed0"], [0.5, 0.6])  # finished
    record(named["sgd-bp-k1-seed1"], [0.5], diverged=True)
    half = record(named["sgd-ddg-k2-seed0"], [0.5])
    (half / "summary.json").unlink()
    (half / "checkpoints" / "iteration-00000010").mkdir(parents=True)
    begun = record(named["sgd-ddg-k2-seed1"], [0.5])
    (begun / "summary.json").unlink()

    failures = make(runs, workers=1)

    assert started == [
        ("adam-bp-k1-seed0", "train"),
        ("sgd-ddg-k2-seed0", "resume"),
        ("sgd-ddg-k3-seed0", "train"),
        ("adam-bp-k1-seed1", "train"),
        ("sgd-ddg-k2-seed1", "train"),
        ("sgd-ddg-k3-seed1", "train"),
        ("sgd-ddg-slack1-k3-seed1", "train"),
    ]
    assert failures == [Failure("small/adam-bp-k1-seed0", "the disk is full")]

    started.clear()
    make(runs)  # the failed one again, and nothing else: one that diverged is a result
    assert started == [("adam-bp-k1-seed0", "train")]


def test_a_run_with_other_settings_stops_everything_before_it_starts(
    tmp_path: Path, started: Started
) -> None:
    runs = runs_of(tmp_path)
    record(by_name(runs)["sgd-ddg-k3-seed1"], [0.5], lr=0.5)
    with pytest.raises(ConfigError, match=r"other settings .*lr: 0.5 there, 0.05 here"):
        make(runs)
    assert started == []


def test_a_second_command_in_the_same_folder_is_refused(tmp_path: Path, started: Started) -> None:
    runs = runs_of(tmp_path)[2:4]
    with RunLock() as lock:
        lock.take(runs[0].run_dir.parent)
        with pytest.raises(ConfigError, match=r"another process works .*wait until it ends"):
            make(runs)
    assert started == []
    make(runs)
    assert len(started) == 2
