"""What rank 0 writes down, and that it comes to an end."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from delaygrad.records import read_events
from delaygrad.training import reporter
from delaygrad.training.evaluation import Evaluation


def test_events_are_on_record_and_on_the_board(tmp_path: Path) -> None:
    told = reporter.Reporter(tmp_path, 10, 0, quiet=True)
    told.training(5, epoch=0.5, loss=2.0, lr=0.1, samples_per_s=100.0)
    told.evaluation(10, 1.0, "test", Evaluation(0.5, 1.5, 20))
    told.event("direction", 10, stages=[])
    told.close()
    names = [event["event"] for event in read_events(tmp_path / "records.jsonl")]
    assert names == ["training", "evaluation", "direction"]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"accuracy/test" in events.read_bytes()


def test_the_board_reads_back_and_hides_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    for done, losses in ((0, {5: 2.0, 10: 1.0}), (5, {10: 1.5})):
        board = reporter.Board(tmp_path, done)
        for iteration, loss in losses.items():
            board.show(iteration, {"loss/train": loss})
        board.close()
        time.sleep(1.1)  # the name of an event file has seconds
    read = EventAccumulator(str(tmp_path)).Reload()
    points = [(point.step, point.value) for point in read.Scalars("loss/train")]
    assert points == [(5, 2.0), (10, 1.5)]


class FullDisk(io.BytesIO):
    def write(self, content: object) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_under_the_board_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = reporter.Reporter(tmp_path, 10, 0, quiet=True)
    told._board._records.close()
    monkeypatch.setattr(told._board._records, "_writer", FullDisk())
    for iteration in range(3):
        told.training(iteration, epoch=0.5, loss=2.0, lr=0.1, samples_per_s=100.0)
    told.close()
    err = capsys.readouterr().err
    assert err.count("cannot write TensorBoard's events") == 1 and "Traceback" not in err
    assert len(read_events(tmp_path / "records.jsonl")) == 3
