"""Count, and on demand record, how a stage spends its time.

A worker's action is a row of activities, such as wait, forward, send. ``start`` begins an action;
``lap`` ends one activity, and begins the next. While a trace is on, each activity is also kept in
memory, as one plain tuple. Nothing is written, and nothing leaves the process, until the trace is
read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

ACTIVITIES = ("forward", "backward", "average", "update", "send", "wait")
"""What a stage spends time on. ``average``: idle, for its replicas' average. ``wait``: idle, for a
neighbour's message. ``send``: handing over a message; long if the neighbour is far behind."""

EventRow: TypeAlias = tuple[str, str, int, int, int, int, int, int]
"""An event as it is recorded; the fields are those of ``delaygrad.records.Event``."""

IterationRow: TypeAlias = list[Any]
"""An iteration as it is recorded; the fields are those of ``delaygrad.records.Iteration``."""


def shown_activities(*, averaged: object) -> tuple[str, ...]:
    """Return the activities that a table or a figure names.

    Args:
        averaged: whether replicas took time; without a ``mesh`` there are none to wait for.
    """
    return tuple(name for name in ACTIVITIES if averaged or name != "average")


class StageClock:
    """Add up the seconds that a stage spends on each activity; record them one by one on demand.

    On an accelerator these are the seconds of the host, which runs ahead of the device: a slice
    says when the work was queued, not when it was done. Give ``now`` a clock that waits for the
    device first, to measure the device.

    Args:
        now: nanoseconds on a clock that never goes back, the same for all processes of a host.

    Example:
        >>> clock = StageClock()
        >>> clock.start_trace(1)
        >>> clock.begin_iteration(0)
        >>> clock.start("F", batch_index=0, version=0)
        >>> clock.lap("forward")
        >>> sorted(clock.seconds) == sorted(ACTIVITIES)
        True
        >>> [row[:4] for row in clock.events]
        [('forward', 'F', 0, 0)]
    """

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(ACTIVITIES, 0.0)
        self.now = now
        self.events: list[EventRow] = []
        """What the last trace recorded, in the order in which it ended."""
        self.iterations: list[IterationRow] = []
        """The iterations of the last trace."""
        self.iteration = 0
        """The current iteration."""
        self.recording = False
        self._wanted = 0  # iterations still to be recorded
        self._settled = 0
        self._kind, self._batch_index, self._version, self._start_ns = "", -1, -1, 0

    def start(self, kind: str, batch_index: int, version: int) -> None:
        """Begin an action, and its first activity.

        Args:
            kind: F, B or U.
            batch_index: of the action.
            version: of the stage's parameters.
        """
        self._kind, self._batch_index, self._version = kind, batch_index, version
        self._start_ns = self.now()

    def lap(self, activity: str, num_bytes: int = 0) -> None:
        """End an activity, and begin the next one of the same action.

        Args:
            activity: one of ``ACTIVITIES``.
            num_bytes: that it has sent.
        """
        start_ns, self._start_ns = self._start_ns, self.now()
        duration_ns = self._start_ns - start_ns
        self.seconds[activity] += 1e-9 * duration_ns
        if self.recording:
            action = self._kind, self._batch_index, self.iteration
            self.events.append((activity, *action, start_ns, duration_ns, self._version, num_bytes))

    def reset(self) -> None:
        """Start from zero again."""
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)

    def start_trace(self, num_iterations: int) -> None:
        """Forget the last trace; record this many iterations, from the next one on.

        Raises:
            ValueError: there is nothing to record.
        """
        if num_iterations < 1:
            raise ValueError(
                f"a trace needs at least one iteration (num_iterations: {num_iterations})"
            )
        self.events, self.iterations = [], []
        self.recording, self._wanted = False, num_iterations

    def begin_iteration(self, iteration: int) -> None:
        """Note that an iteration begins, and that the one before is over."""
        now_ns = self.now()
        if self.recording:
            self.iterations[-1][2] = now_ns
        self.recording = self._wanted > 0
        if self.recording:
            self._wanted -= 1
            self.iterations.append([iteration, now_ns, None, self._settled])
        self.iteration = iteration
        self._settled += 1

    def interrupt(self) -> None:
        """Note that training is interrupted by an evaluation, a checkpoint or a drain.

        The interruption is not recorded. The iterations next to it do not count as steady.
        """
        self.recording = False
        self._settled = 0
