"""What a run writes down: how each stage spent its time, a log of events, a timeline."""

from delaygrad.records.clock import ACTIVITIES, StageClock, shown_activities
from delaygrad.records.log import (
    EventLog,
    log_line,
    parse_json,
    read_events,
    read_sound_events,
)
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
    "StageClock",
    "StageTrace",
    "Trace",
    "log_line",
    "measure_trace",
    "parse_json",
    "read_events",
    "read_sound_events",
    "read_trace",
    "shown_activities",
]
