"""What a viewer is given is a sound trace-event file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from timelines import check_chrome_trace, simulated

from delaygrad.results import chrome_trace, write_chrome_trace


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_the_file_is_sound(num_stages: int, tmp_path: Path) -> None:
    trace = simulated([(30, 60, 5)] * num_stages, 8, hop_ms=3, send_ms=1, between_ms=2)
    write_chrome_trace(trace, tmp_path / "trace.json")
    found = json.loads((tmp_path / "trace.json").read_text())
    check_chrome_trace(found, num_stages)
    arrows = [event for event in found["traceEvents"] if event["ph"] == "s"]
    # Activations of 8 batches; error gradients of those that came back down in time.
    up = sum(max(0, 8 - (num_stages - k)) for k in range(1, num_stages))
    assert len(arrows) == 8 * (num_stages - 1) + up


def test_slices_are_actions_in_microseconds() -> None:
    events = chrome_trace(simulated([(30, 60, 5), (10, 20, 5)], 3, hop_ms=2, send_ms=1))
    slices = [event for event in events["traceEvents"] if event["ph"] == "X"]
    names = [event["name"] for event in slices if event["pid"] == 0]
    assert names[:6] == ["0F0", "send 0F0", "0F1", "send 0F1", "wait 0B0", "0B0"]
    first = next(event for event in slices if event["name"] == "0F1")
    assert (first["ts"], first["dur"]) == (31_000, 30_000)
    assert first["args"] == {"batch": 1, "iteration": 1, "version": 0}
    sent = next(event for event in slices if event["name"] == "send 0F1")
    assert sent["args"]["bytes"] == 64


def test_staleness_is_counted_once_it_is_known() -> None:
    events = chrome_trace(simulated([(3, 6, 1)] * 3, 8))["traceEvents"]
    counters = [(e["pid"], e["args"]["updates"]) for e in events if e["ph"] == "C"]
    assert set(counters) == {(0, 2), (1, 1), (2, 0)}
    assert len(counters) == 4 + 6 + 8  # batches that went forward after the fill, and backward


def test_an_arrow_ends_within_its_wait_even_if_that_took_no_time() -> None:
    check_chrome_trace(chrome_trace(simulated([(3, 6, 1)] * 2, 5)), 2)


def test_an_empty_trace_has_no_slices() -> None:
    trace = simulated([(3, 6, 1)] * 2, 3)
    empty = tuple(replace(stage, events=(), iterations=()) for stage in trace.stages)
    found = chrome_trace(replace(trace, stages=empty))
    assert {event["ph"] for event in found["traceEvents"]} == {"M"}
