"""The log is readable at any moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from delaygrad.errors import DataError
from delaygrad.records import EventLog, read_events, read_sound_events


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


@pytest.mark.parametrize("cut", ['{"event": "tw', "nul", "\\xff"])
def test_a_damaged_line_does_not_hide_those_after_it(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "log"
    log = EventLog(path)
    for index in range(3):
        log.write("run", index=index)
    log.close()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], cut, lines[2], ""]))
    events, damaged = read_sound_events(path)
    assert ([event["index"] for event in events], damaged) == ([0, 2], [2])
    with pytest.raises(DataError, match=r"damaged \(.*log, lines: 2\); leave the run out"):
        read_events(path)


def test_every_changed_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = EventLog(path)
    log.write("run", loss=0.25)
    log.write("run", loss=1.25)
    log.close()
    content = path.read_bytes()
    begin = content.index(b"\n") + 1
    for place in range(begin, len(content) - 1):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            events, damaged = read_sound_events(path)
            assert [event["loss"] for event in events] == [0.25], (place, bit)
            assert damaged and damaged[0] == 2


@pytest.mark.parametrize(
    "line",
    ["null", "[]", "3", "{}", '{"event": 3}', '{"event": "x", "iteration": "3"}', 9999 * "["],
)
def test_json_that_is_no_event_is_damage(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text(line + "\n")
    assert read_sound_events(tmp_path / "log") == ([], [1])


def test_a_line_may_lack_a_checksum_only_before_the_first_that_has_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"event": "old"}\n')
    log = EventLog(path)
    log.write("new")
    log.close()
    assert read_events(path) == [{"event": "old"}, {"event": "new"}]
    with path.open("a") as file:
        file.write('{"event": "edited"}\n')
    assert read_sound_events(path)[1] == [3]
