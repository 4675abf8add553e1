"""A run is read whatever has become of it; a folder that is none gets one clear message."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import record_run

from delaygrad.errors import ConfigError, DataError
from delaygrad.results import read_run, read_runs


def test_a_finished_run(tmp_path: Path) -> None:
    run = read_run(record_run(tmp_path / "a", accuracy=0.8, best=0.9, stages=3, trace=True))
    assert (run.name, run.method, run.num_stages, run.seed) == ("a", "ddg", 3, 0)
    assert run.state == run.state_text == "finished"
    assert run.final_accuracy == 80.0
    assert run.best_accuracy == 90.0 and run.best_test is not None
    assert run.best_test["epoch"] == run.epochs - 1 == 3.0
    # Of the fourth epoch, recorded at its middle and its end.
    assert run.train_loss == pytest.approx(2.5 * (math.exp(-3.5) + math.exp(-4)) / 2)
    assert run.epoch_s == 10 * 128 / 64.0  # 10 batches at the samples/s last recorded
    assert run.trace is not None and len(run.trace.stages) == 3
    assert run.takes_turns and [row["delay"] for row in run.stages] == [2, 1, 0]


def test_a_run_that_looks_at_the_test_set_once_has_no_best(tmp_path: Path) -> None:
    run = read_run(record_run(tmp_path / "a", split="validation"))
    assert len(run.evaluations("validation")) == 4 and len(run.evaluations("test")) == 1
    assert run.best_test is None and run.final_accuracy == 70.0


def test_an_unfinished_run_has_no_result(tmp_path: Path) -> None:
    run = read_run(record_run(tmp_path / "a", until=25))
    assert run.state_text == "unfinished at iteration 25 (epoch 2.5 of 4)"
    assert (
        run.final_accuracy is run.best_accuracy is run.train_loss is run.result("train_s") is None
    )
    short = read_run(record_run(tmp_path / "b", until=25, iterations=1000))
    assert short.state_text == "unfinished at iteration 25 (epoch 2.5)"


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", until=5)
    (folder / "records.jsonl").unlink()
    assert read_run(folder).state_text == "unfinished at iteration 0 (epoch 0.0 of 4)"


def test_a_diverged_run_says_so_unless_it_was_mended(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", until=20, diverged=True)
    assert read_run(folder).state_text == "diverged at iteration 21 (loss nan)"
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"event": "resumed", "iteration": 20}\n')
    assert read_run(folder).state == "unfinished"
    (folder / "summary.json").write_text('{"test_accuracy": 0.5}')
    assert read_run(folder).state == "finished"


def test_a_line_cut_off_at_the_end_is_left_out(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", until=25)
    before = read_run(folder).events
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"event": "training", "itera')
    assert read_run(folder).events == before


def test_time_goes_on_where_a_run_was_resumed(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", until=5)
    times = [10.0, 20.0, 4.0, 8.0, 3.0]  # of three processes
    events = [
        {"event": "training", "iteration": i, "epoch": 0.1, "loss": 1.0, "elapsed_s": time}
        for i, time in enumerate(times)
    ]
    events.append({"event": "diverged", "iteration": 9})
    (folder / "records.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    found = [event["elapsed_s"] for event in read_run(folder).events]
    assert found[:-1] == [10.0, 20.0, 24.0, 28.0, 31.0] and math.isnan(found[-1])


def test_folders_without_a_run_are_named(tmp_path: Path) -> None:
    record_run(tmp_path / "some" / "a")
    record_run(tmp_path / "some" / "b")
    (tmp_path / "empty").mkdir()
    for folder, remedy in (
        ("absent", "no such folder"),
        ("empty", "it has no config.json"),
        ("some", r"folders in it hold runs \(2\): give .*some/\*"),
    ):
        with pytest.raises(ConfigError, match=rf"no run in this folder \(.*{folder}\); .*{remedy}"):
            read_run(tmp_path / folder)


def test_names_must_differ_and_there_must_be_a_run(tmp_path: Path) -> None:
    twins = [record_run(tmp_path / parent / "run") for parent in ("a", "b")]
    with pytest.raises(ConfigError, match=r"two runs have the same name \(.*a/run, .*b/run\)"):
        read_runs(twins)
    with pytest.raises(ConfigError, match="same name"):
        read_runs([twins[0], twins[0]])
    with pytest.raises(ConfigError, match="at least one run"):
        read_runs([])


EVALUATION = {"event": "evaluation", "iteration": 1, "epoch": 1.0, "loss": 1.0, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "corrupt"),
        ("config.json", "[]", "not an object"),
        ("config.json", "{}", "no config"),
        ("config.json", {"config": []}, "no config"),
        ("config.json", {"config": {"stages": 2}}, "no method"),
        ("config.json", {"config": {"method": "bp", "stages": "2"}}, "no stages"),
        ("summary.json", '{"test_accuracy": ', "corrupt"),
        ("summary.json", {}, "no test_accuracy"),
        ("summary.json", {"test_accuracy": "good"}, "no test_accuracy"),
        ("summary.json", '{"test_accuracy": NaN}', "no test_accuracy"),
        ("summary.json", {"test_accuracy": 0.5, "stages": [1]}, "stages"),
        ("summary.json", {"test_accuracy": 0.5, "trace": {"stages": {}}}, "stages"),
        ("records.jsonl", "{}\n", "lines: 1\\)"),
        ("records.jsonl", '{"event": "x"}\nnonsense\n{"event": "x"}\n', "lines: 2\\)"),
        ("records.jsonl", {"event": "training", "iteration": 1, "epoch": 0.1}, "line 1: no loss"),
        ("records.jsonl", {**EVALUATION, "accuracy": "high"}, "line 1: no accuracy"),
        ("records.jsonl", EVALUATION, "line 1: no split"),
        ("records.jsonl", {"event": "direction", "iteration": 1, "epoch": 1}, "line 1: no stages"),
        ("records.jsonl", b"\xff\xfe\n", "lines: 1\\)"),
        ("trace-events.json", "{}", "corrupt"),
    ],
)
def test_a_corrupt_file_is_named(name: str, content: Any, message: str, tmp_path: Path) -> None:
    folder = record_run(tmp_path / "run")
    if isinstance(content, dict):
        content = json.dumps(content)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_run(folder)
    assert str(folder / name) in str(caught.value)
