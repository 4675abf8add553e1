"""The clock counts what it is told to, and records it only while it should."""

from __future__ import annotations

import itertools
import time

import pytest

from delaygrad.records import ACTIVITIES, Event, Iteration, StageClock


def ticking() -> StageClock:
    """A clock that is a nanosecond later each time it is looked at, from 0."""
    return StageClock(now=itertools.count().__next__)


def busy(clock: StageClock, activity: str = "forward", batch_index: int = 0) -> None:
    clock.start("F", batch_index, version=3)
    clock.lap(activity)


def test_the_clock_adds_up_each_activity_by_itself() -> None:
    clock = StageClock()
    for batch_index in range(2):
        clock.start("F", batch_index, version=0)
        time.sleep(0.01)
        clock.lap("wait")
        time.sleep(0.01)
        clock.lap("forward")
        time.sleep(0.02)  # between two actions: counts for neither
    assert 0.02 <= clock.seconds["wait"] and 0.02 <= clock.seconds["forward"]
    assert clock.seconds["backward"] == clock.seconds["update"] == clock.seconds["send"] == 0
    clock.reset()
    assert clock.seconds == dict.fromkeys(ACTIVITIES, 0)


def test_without_a_trace_nothing_is_kept() -> None:
    clock = ticking()
    for iteration in range(5):
        clock.begin_iteration(iteration)
        busy(clock)
    assert clock.events == [] and clock.iterations == []
    assert clock.seconds["forward"] == pytest.approx(5e-9)


def test_a_trace_keeps_its_iterations_and_no_more() -> None:
    clock = ticking()
    for iteration in range(6):
        if iteration == 2:
            clock.start_trace(2)
        clock.begin_iteration(iteration)
        busy(clock, batch_index=iteration)
    # Each iteration looks at the clock three times: at its start, and twice for the activity.
    events = [Event(*row) for row in clock.events]
    assert events == [
        Event("forward", "F", 2, 2, 7, 1, 3, 0),
        Event("forward", "F", 3, 3, 10, 1, 3, 0),
    ]
    assert [Iteration(*row) for row in clock.iterations] == [
        Iteration(2, 6, 9, 2), Iteration(3, 9, 12, 3)
    ]  # fmt: skip


def test_what_comes_between_iterations_is_not_recorded_and_leaves_their_end_open() -> None:
    clock = ticking()
    clock.start_trace(3)
    for iteration in range(3):
        clock.begin_iteration(iteration)
        busy(clock, batch_index=iteration)
        if iteration == 1:
            clock.interrupt()
            busy(clock, "backward", 0)  # a drain
    clock.begin_iteration(3)
    assert [Event(*row).batch_index for row in clock.events] == [0, 1, 2]
    iterations = [Iteration(*row) for row in clock.iterations]
    assert [row.end_ns is None for row in iterations] == [False, True, False]
    assert [row.settled for row in iterations] == [0, 1, 0]


def test_a_second_trace_replaces_the_first() -> None:
    clock = ticking()
    for iteration in range(4):
        if iteration in (0, 2):
            clock.start_trace(1)
        clock.begin_iteration(iteration)
        busy(clock)
    assert [Event(*row).iteration for row in clock.events] == [2]
    with pytest.raises(ValueError, match=r"at least one iteration \(num_iterations: 0\)"):
        clock.start_trace(0)


def test_the_activities_of_an_action_follow_each_other_without_a_gap() -> None:
    clock = ticking()
    clock.start_trace(1)
    clock.begin_iteration(0)
    clock.start("F", batch_index=4, version=2)
    clock.lap("wait")
    clock.lap("forward")
    clock.lap("send", num_bytes=40)
    assert [Event(*row) for row in clock.events] == [
        Event("wait", "F", 4, 0, 1, 1, 2, 0),
        Event("forward", "F", 4, 0, 2, 1, 2, 0),
        Event("send", "F", 4, 0, 3, 1, 2, 40),
    ]
