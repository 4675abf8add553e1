"""The picture is drawn whatever the trace holds, and shows what is in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from timelines import simulated

from delaygrad.records import Trace
from delaygrad.report import draw_timeline
from delaygrad.report.timeline import window


def empty() -> Trace:
    trace = simulated([(3, 6, 1)] * 2, 3)
    stages = tuple(replace(stage, events=(), iterations=()) for stage in trace.stages)
    return replace(trace, stages=stages)


@pytest.mark.parametrize(
    "trace",
    [
        simulated([(3, 6, 1)], 1),
        simulated([(3, 6, 1)] * 3, 20, hop_ms=2, send_ms=1),
        replace(simulated([(3, 6, 1)] * 2, 9), num_processes=1),
        simulated([(3, 6, 1)] * 4, 3),  # nothing but fill
        empty(),
    ],
    ids=["one iteration", "three stages", "one process", "fill", "empty"],
)
def test_figure_is_drawn(trace: Trace, tmp_path: Path) -> None:
    draw_timeline(trace, tmp_path / "trace.png", "a run")
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_a_few_steady_iterations_are_shown() -> None:
    trace = simulated([(30, 60, 10)] * 2, 30)
    start_ns, end_ns = window(trace)
    assert end_ns - start_ns == 4 * 100_000_000
    steady = trace.stages[0].iterations[2:29]
    assert steady[0].start_ns < start_ns and end_ns <= steady[-1].end_ns
