"""What a run writes down: how each stage spent its time, a log of events, a timeline."""

from delaygrad.records.clock import ACTIVITIES, Span, StageClock
from delaygrad.records.log import EventLog, read_events
from delaygrad.records.measures import measure_trace
from delaygrad.records.trace import (
    TRACE_EVENTS,
    ClockReading,
    Event,
    Iteration,
    StageTrace,
    Trace,
    read_trace,
)

__all__ = [
    "ACTIVITIES",
    "TRACE_EVENTS",
    "ClockReading",
    "Event",
    "EventLog",
    "Iteration",
    "Span",
    "StageClock",
    "StageTrace",
    "Trace",
    "measure_trace",
    "read_events",
    "read_trace",
]
