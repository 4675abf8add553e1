"""What rank 0 writes down, and that it comes to an end."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest

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


def test_a_board_that_cannot_be_closed_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = reporter.Reporter(tmp_path, 10, 0, quiet=True)
    monkeypatch.setattr(reporter, "_CLOSING_S", 0.2)
    close, never = told._board.close, threading.Event()
    monkeypatch.setattr(told._board, "close", never.wait)
    begun_s = time.perf_counter()
    told.close()
    assert time.perf_counter() - begun_s < 5
    never.set()
    close()


class FullDisk(io.BytesIO):
    """Of the file that TensorBoard's thread writes to."""

    def write(self, content: object) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_under_the_board_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = threading.excepthook
    told = reporter.Reporter(tmp_path, 10, 0, quiet=True)
    thread = told._board._get_file_writer().event_writer._async_writer._worker
    monkeypatch.setattr(thread._record_writer, "_writer", FullDisk())
    for iteration in range(200):
        told.training(iteration, epoch=0.5, loss=2.0, lr=0.1, samples_per_s=100.0)
        if not thread.is_alive():
            break
        time.sleep(0.01)
    told.training(iteration + 1, epoch=0.5, loss=2.0, lr=0.1, samples_per_s=100.0)
    told.close()
    err = capsys.readouterr().err
    assert err.count("cannot write TensorBoard's events") == 1 and "Traceback" not in err
    assert len(read_events(tmp_path / "records.jsonl")) == iteration + 2
    assert threading.excepthook == hook
