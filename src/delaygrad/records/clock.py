"""Count, and on demand record, how a stage spends its time.

Each activity of a worker runs in a ``with clock.measure(...)``, which adds up its duration. While a
trace is on, each activity is also kept in memory, as one plain tuple. Nothing is written, and
nothing leaves the process, until the trace is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

ACTIVITIES = ("forward", "backward", "update", "send", "wait")
"""What a stage spends time on. ``wait``: idle, for a neighbour's message. ``send``: handing over a
message; long if the neighbour is far behind."""

EventRow: TypeAlias = tuple[str, str, int, int, int, int, int, int]
"""An event as it is recorded; the fields are those of ``delaygrad.records.Event``."""

IterationRow: TypeAlias = list[Any]
"""An iteration as it is recorded; the fields are those of ``delaygrad.records.Iteration``."""


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
        >>> with clock.measure("forward", "F", batch_index=0, version=0):
        ...     pass
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

    def measure(
        self, activity: str, kind: str = "", batch_index: int = -1, version: int = -1
    ) -> Span:
        """Count the duration of the ``with`` block.

        Args:
            activity: one of ``ACTIVITIES``.
            kind: F, B or U, of the action that it belongs to.
            batch_index: of that action.
            version: of the stage's parameters when the block begins.
        """
        return Span(self, activity, kind, batch_index, version)

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


class Span:
    """One block of time; ``num_bytes`` may be set within it."""

    __slots__ = (
        "_activity",
        "_batch_index",
        "_clock",
        "_kind",
        "_start_ns",
        "_version",
        "num_bytes",
    )

    def __init__(
        self, clock: StageClock, activity: str, kind: str, batch_index: int, version: int
    ) -> None:
        self._clock, self._activity, self._kind = clock, activity, kind
        self._batch_index, self._version = batch_index, version
        self.num_bytes = 0
        """Bytes that the activity has sent."""

    def __enter__(self) -> Span:
        self._start_ns = self._clock.now()
        return self

    def __exit__(self, *failure: object) -> None:
        clock, start_ns = self._clock, self._start_ns
        duration_ns = clock.now() - start_ns
        clock.seconds[self._activity] += 1e-9 * duration_ns
        if clock.recording:
            clock.events.append(
                (
                    self._activity,
                    self._kind,
                    self._batch_index,
                    clock.iteration,
                    start_ns,
                    duration_ns,
                    self._version,
                    self.num_bytes,
                )
            )
