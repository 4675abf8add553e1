"""A run folder tells what became of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from targets import record, runs_of

from delaygrad.errors import ConfigError
from delaygrad.reproduce import run_state
from delaygrad.reproduce.run_state import require_same_settings, state_of


def test_states(tmp_path: Path) -> None:
    first, second, third, fourth, *_ = runs_of(tmp_path)
    assert state_of(first.run_dir) == "new"
    assert state_of(record(first, [0.5, 0.6])) == "finished"
    assert state_of(record(second, [0.5], diverged=True)) == "diverged"
    folder = record(third, [0.5])
    (folder / "summary.json").unlink()
    assert state_of(folder) == "new"
    (folder / "checkpoints" / "iteration-00000010.unfinished").mkdir(parents=True)
    assert state_of(folder) == "new"
    (folder / "checkpoints" / "iteration-00000010").mkdir(parents=True)
    assert state_of(folder) == "resumable"
    (record(fourth, [0.5]) / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"results without a config.json"):
        state_of(fourth.run_dir)


def test_settings_must_be_the_same_but_for_those_that_decide_nothing(tmp_path: Path) -> None:
    run = runs_of(tmp_path)[0]
    record(
        run, [0.5], run_dir="/elsewhere", data_dir="/data", timeout_s=1.0, log_every=3,
        keep_checkpoints=7, checkpoint_every=9, evaluation_batch_size=5,
    )  # fmt: skip
    require_same_settings(run.config)
    for changed in ({"seed": 5}, {"lr": 0.1}, {"epochs": 3}, {"evaluate_every": 2}):
        with pytest.raises(ConfigError, match=rf"{next(iter(changed))}: .* there, .* here"):
            require_same_settings(run.config.replace(**changed))


def test_a_setting_that_a_record_lacks_has_its_default(tmp_path: Path) -> None:
    run = next(run for run in runs_of(tmp_path) if run.config.method.options().get("slack") == 1)
    record(run, [0.5], nesterov=None, trace=None)
    require_same_settings(run.config)
    (run.run_dir / "config.json").unlink()
    other = next(r for r in runs_of(tmp_path) if r.name == "sgd-bp-k1-seed0")
    record(other, [0.5], method=None)
    with pytest.raises(ConfigError, match=r"method: ddg there, bp here"):
        require_same_settings(other.config)


def test_clearing_removes_what_a_run_leaves_and_nothing_else(tmp_path: Path) -> None:
    run = runs_of(tmp_path)[0]
    folder = record(run, [0.5])
    (folder / "checkpoints" / "iteration-00000010").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    run_state.clear(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert state_of(folder) == "new"


def test_position_is_the_newest_whole_event(tmp_path: Path) -> None:
    assert run_state.position(tmp_path) == {}
    lines = [json.dumps({"event": "training", "epoch": n / 100, "x": "." * 90}) for n in range(99)]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join([*lines, '{"event": "trai']))
    assert run_state.position(tmp_path)["epoch"] == 0.98
    path.write_text('{"event": "trai')
    assert run_state.position(tmp_path) == {}


def test_last_words(tmp_path: Path) -> None:
    assert run_state.message_of(tmp_path) == "it ended without a message"
    (tmp_path / run_state.LOG).write_text("Traceback\n\ndelaygrad: no room\n\n")
    assert run_state.message_of(tmp_path) == "no room"
