"""``delaygrad trace`` draws again, and says, what a run has recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import here, summary, train
from timelines import check_chrome_trace, simulated

from delaygrad.cli.main import main
from delaygrad.records import TRACE_EVENTS, Trace


def written(folder: Path, trace: Trace) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / TRACE_EVENTS).write_text(json.dumps(trace.to_json()))
    return folder


def test_figures_go_to_the_run_folder_or_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path / "run", simulated([(30, 60, 5), (10, 20, 5)], 12, hop_ms=2))
    main(["trace", str(run), "--output", str(tmp_path / "a" / "b")])
    assert sorted(path.name for path in run.iterdir()) == [TRACE_EVENTS]
    out = capsys.readouterr().out
    main(["trace", str(run)])
    assert capsys.readouterr().out.splitlines()[:-1] == out.splitlines()[:-1]
    for folder in (run, tmp_path / "a" / "b"):
        check_chrome_trace(json.loads((folder / "trace.json").read_text()), 2)
        assert (folder / "trace.png").read_bytes().startswith(b"\x89PNG")
    for said in (
        " ms, predicted 95.00 ms",
        "update of stage 0, the slowest",
        "at most 1, 0 updates; prescribed: 1, 0",
        "activation, stage 0 to 1: 2.00 ms (median of 9 waited for), 64 bytes",
        "error gradient, stage 1 to 0: never waited for, 64 bytes",
        "  0.0% │",
    ):
        assert said in out


def test_json_is_the_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path, simulated([(30, 60, 5)] * 2, 12))
    main(["trace", str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["iteration_s"] == pytest.approx(0.095)
    assert found["timeline"] == str(run / "trace.png")


def test_one_process_and_no_steady_state_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = simulated([(30, 60, 5)] * 2, 12)
    main(["trace", str(written(tmp_path, replace(trace, stages_per_process=(2,))))])
    assert "idle        not measured: the stages took turns in one process" in (
        capsys.readouterr().out
    )
    shared = replace(simulated([(30, 60, 5)] * 3, 12), stages_per_process=(1, 2))
    main(["trace", str(written(tmp_path, shared))])
    out = capsys.readouterr().out
    assert "of the process of stage 1, the slowest" in out and "not measured" not in out
    main(["trace", str(written(tmp_path, simulated([(30, 60, 5)] * 4, 3)))])
    assert "none of the 3 recorded iterations is of a steady state" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "train with --trace 50 to record"), ("{}", "corrupt, or of another version")],
)
def test_nothing_to_draw_is_one_clear_message(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / TRACE_EVENTS).write_text(content)
    with pytest.raises(SystemExit, match=message):
        main(["trace", str(tmp_path)])
    assert not (tmp_path / "trace.json").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = written(tmp_path / "run", simulated([(3, 6, 1)], 4))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"cannot write \(.*choose another place"):
        main(["trace", str(run), "--output", str(tmp_path / "file")])


def test_train_records_in_one_process_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(train(tmp_path, 3, "--iterations", 14, "--trace", 8))
    found = summary(tmp_path)["trace"]
    assert found["num_processes"] == 1 and found["recorded_iterations"] == 8
    assert [row["staleness_max"] for row in found["stages"]] == [2, 1, 0]
    assert json.loads(capsys.readouterr().out)["trace"] == found
    main(["trace", str(tmp_path), "--json"])
    assert {**found, "timeline": str(tmp_path / "trace.png")} == (
        json.loads(capsys.readouterr().out)
    )
