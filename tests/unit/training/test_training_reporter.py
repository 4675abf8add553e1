"""What rank 0 writes down, and that it comes to an end."""

from __future__ import annotations

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
