"""A timeline of all stages, on the clock of the first rank.

    rank 0    |--1F7--|send|          its events, on its own clock
    rank 1           |---wait---|--   its events, on its own clock, minus the offset to rank 0's

A trace is a value: it is gathered once, after the last iteration, and everything drawn or computed
from it needs nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from delaygrad.errors import DataError
from delaygrad.records.log import parse_json

TRACE_EVENTS = "trace-events.json"
"""The file of a run folder that holds the recorded events."""

_FORMAT = 1


class Event(NamedTuple):
    """Something that a stage did, or waited for."""

    activity: str
    """One of ``ACTIVITIES``."""
    kind: str
    """F, B or U: the action that it belongs to; a wait belongs to the action that follows."""
    batch_index: int
    """The micro-batch of that action; the last one of its batch for an update."""
    iteration: int
    """The current iteration."""
    start_ns: int
    duration_ns: int
    version: int
    """Updates of the stage's parameters when it began."""
    num_bytes: int
    """Bytes sent; 0 for other activities."""

    @property
    def end_ns(self) -> int:
        """When it ended."""
        return self.start_ns + self.duration_ns


class Iteration(NamedTuple):
    """One iteration of one stage."""

    iteration: int
    start_ns: int
    end_ns: int | None
    """Where the next one begins; None if something else came between, or nothing."""
    settled: int
    """Iterations since the start, or since something else came between."""


class ClockReading(NamedTuple):
    """What a rank's clock showed, against that of rank 0."""

    local_ns: int
    """When it was read, on the rank's own clock."""
    offset_ns: int
    """How far the rank's clock is ahead of rank 0's."""
    uncertainty_ns: int
    """Largest error of ``offset_ns``."""


@dataclass(frozen=True, kw_only=True)
class StageTrace:
    """What one stage did in the iterations of a trace.

    Attributes:
        stage_index: 0..K-1 from the input.
        delay: prescribed, in updates.
        events: in the order in which they ended; they do not overlap.
        iterations: in order.
        clock: the reading by which the times were converted to rank 0's clock.
    """

    stage_index: int
    delay: int
    events: tuple[Event, ...]
    iterations: tuple[Iteration, ...]
    clock: ClockReading = ClockReading(0, 0, 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``from_json`` reads them back."""
        return {
            "stage_index": self.stage_index,
            "delay": self.delay,
            "clock": self.clock._asdict(),
            "iterations": self.iterations,
            "events": self.events,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StageTrace:
        """Rebuild what ``to_json`` returned."""
        return cls(
            stage_index=values["stage_index"],
            delay=values["delay"],
            clock=ClockReading(**values["clock"]),
            iterations=tuple(Iteration(*row) for row in values["iterations"]),
            events=tuple(Event(*row) for row in values["events"]),
        )

    def on_first_clock(self, readings: Sequence[ClockReading]) -> StageTrace:
        """Return the same trace in the time of rank 0.

        Args:
            readings: of this rank's clock, in order, at least one. Clocks of two hosts may drift
                apart: if the first and the last reading differ by more than their uncertainty,
                the offset is interpolated, else it is that of the best reading throughout.
        """
        first, last = readings[0], readings[-1]
        best = min(readings, key=lambda reading: reading.uncertainty_ns)
        apart_ns = last.offset_ns - first.offset_ns
        drifting = abs(apart_ns) > first.uncertainty_ns + last.uncertainty_ns
        clock = max(first, last, key=lambda reading: reading.uncertainty_ns) if drifting else best

        def shifted(time_ns: int) -> int:
            if not drifting:
                return time_ns - best.offset_ns
            past = (time_ns - first.local_ns) / (last.local_ns - first.local_ns)
            return time_ns - first.offset_ns - round(past * apart_ns)

        def moved(event: Event) -> Event:  # one that ended as another began still does
            start_ns, end_ns = shifted(event.start_ns), shifted(event.end_ns)
            return event._replace(start_ns=start_ns, duration_ns=end_ns - start_ns)

        events = tuple(map(moved, self.events))
        iterations = tuple(
            i._replace(
                start_ns=shifted(i.start_ns),
                end_ns=None if i.end_ns is None else shifted(i.end_ns),
            )
            for i in self.iterations
        )
        return replace(self, events=events, iterations=iterations, clock=clock)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What all stages did in the same iterations, on one clock.

    Attributes:
        method: the rule that they trained by.
        stages_per_process: how many stages each process holds, in order.
        stages: of all stages, in order.
    """

    method: str
    stages_per_process: tuple[int, ...]
    stages: tuple[StageTrace, ...]

    @property
    def num_processes(self) -> int:
        """How many processes hold the stages."""
        return len(self.stages_per_process)

    @property
    def by_process(self) -> list[list[int]]:
        """The stages of each process."""
        ends = list(accumulate(self.stages_per_process))
        return [
            [*range(end - n, end)] for end, n in zip(ends, self.stages_per_process, strict=True)
        ]

    @property
    def takes_turns(self) -> bool:
        """Whether all stages alternate in one process, where being idle has no meaning."""
        return self.num_processes == 1 < len(self.stages)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``from_json`` reads them back."""
        return {
            "format": _FORMAT,
            "method": self.method,
            "num_processes": self.num_processes,
            "stages_per_process": self.stages_per_process,
            "event_fields": Event._fields,
            "iteration_fields": Iteration._fields,
            "stages": [stage.to_json() for stage in self.stages],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Trace:
        """Rebuild a trace.

        Raises:
            KeyError, TypeError, ValueError: the values are not of a trace of this format.
        """
        if values["format"] != _FORMAT:
            raise ValueError(f"unknown format (format: {values['format']})")
        stages = tuple(map(StageTrace.from_json, values["stages"]))
        held = values.get("stages_per_process")
        if held is None:  # recorded before processes could hold several stages
            held = [1] * len(stages) if values["num_processes"] > 1 else [len(stages)]
        return cls(method=values["method"], stages_per_process=tuple(held), stages=stages)


def read_trace(run_dir: Path) -> Trace:
    """Read the events that a run has recorded.

    Raises:
        DataError: the run has recorded none, or the file is not a trace.
    """
    path = run_dir / TRACE_EVENTS
    try:
        return Trace.from_json(parse_json(path.read_bytes()))
    except FileNotFoundError as error:
        raise DataError(
            f"the run has recorded no timeline (missing: {path}); train with --trace 50 to record "
            "50 iterations"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read the timeline ({path}): {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the timeline is corrupt, or of another version ({path}: {error}); record it again"
        ) from error
