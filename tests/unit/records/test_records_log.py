"""The log is readable at any moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from delaygrad.records import EventLog, read_events


def test_events_are_read_back_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "records.jsonl")
    log.write("start", seed=3, name="DDG • ü")
    log.write("end", loss=0.25, nothing=None)
    log.close()
    assert read_events(tmp_path / "records.jsonl") == [
        {"event": "start", "seed": 3, "name": "DDG • ü"},
        {"event": "end", "loss": 0.25, "nothing": None},
    ]


def test_an_event_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log")
    log.write("one")
    assert read_events(tmp_path / "log") == [{"event": "one"}]
    log.close()


def test_a_log_is_continued(tmp_path: Path) -> None:
    for index in range(2):
        log = EventLog(tmp_path / "log")
        log.write("run", index=index)
        log.close()
    assert [event["index"] for event in read_events(tmp_path / "log")] == [0, 1]


@pytest.mark.parametrize("cut", ['{"event": "tw', '{"event": "two", "loss": 0.1'])
def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path: Path, cut: str) -> None:
    (tmp_path / "log").write_text('{"event": "one"}\n' + cut)
    assert read_events(tmp_path / "log") == [{"event": "one"}]


def test_a_log_continued_after_a_crash_loses_no_later_event(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"event": "one"}\n{"event": "tw')
    log = EventLog(tmp_path / "log")
    log.write("three")
    log.close()
    assert read_events(tmp_path / "log") == [{"event": "one"}, {"event": "three"}]
