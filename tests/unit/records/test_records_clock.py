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
    with clock.measure(activity, "F", batch_index, version=3):
        pass


def test_the_clock_adds_up_each_activity_by_itself_even_on_failure() -> None:
    clock = StageClock()
    for _ in range(2):
        with clock.measure("wait"):
            time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), clock.measure("forward"):
        time.sleep(0.01)
        raise ZeroDivisionError
    assert clock.seconds["wait"] >= 0.02 and clock.seconds["forward"] >= 0.01
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


def test_bytes_are_those_set_within_the_block() -> None:
    clock = ticking()
    clock.start_trace(1)
    clock.begin_iteration(0)
    with clock.measure("send", "F", 0, 0) as span:
        span.num_bytes = 40
    assert Event(*clock.events[0]).num_bytes == 40
