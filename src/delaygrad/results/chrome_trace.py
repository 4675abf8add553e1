"""A timeline in the trace-event format, which Perfetto and chrome://tracing show.

    process    a stage; its one thread is the row of its slices, which do not overlap
    slice      an action (``2F7``), the send that follows it, or the wait before it
    arrow      from a send to the wait of the stage that took the message
    counter    observed staleness of the gradients of a stage, in updates

References:
    "Trace Event Format", the Chromium project; https://ui.perfetto.dev opens the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from delaygrad.records import Event, StageTrace, Trace
from delaygrad.records.measures import hops_of, staleness_of


def slice_name(stage_index: int, event: Event) -> str:
    """Name an event after its action, as ``Action`` prints it.

    Example:
        >>> slice_name(2, Event("forward", "F", 7, 7, 0, 1, 7, 0))
        '2F7'
        >>> slice_name(2, Event("wait", "F", 7, 7, 0, 1, 7, 0))
        'wait 2F7'
    """
    action = f"{stage_index}{event.kind}{event.batch_index}"
    return f"{event.activity} {action}" if event.activity in ("average", "send", "wait") else action


def chrome_trace(trace: Trace) -> dict[str, Any]:
    """Return the JSON object; times in it are microseconds from the first event."""
    origin = first_ns(trace)
    events = [event for stage in trace.stages for event in _stage_events(stage, origin)]
    for number, (sender, send, receiver, wait) in enumerate(hops_of(trace)):
        events += _arrow(number, sender, send, receiver, wait, origin)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"method": trace.method, "num_processes": trace.num_processes},
    }


def write_chrome_trace(trace: Trace, path: Path) -> None:
    """Write the JSON file."""
    text = json.dumps(chrome_trace(trace), separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8")


def first_ns(trace: Trace) -> int:
    """Say when the earliest recorded activity began."""
    starts = (event.start_ns for stage in trace.stages for event in stage.events)
    return min(starts, default=0)


def _stage_events(stage: StageTrace, origin: int) -> list[dict[str, Any]]:
    place = {"pid": stage.stage_index, "tid": 0}
    title = f"stage {stage.stage_index} (delay {stage.delay})"
    names: dict[str, dict[str, Any]] = {
        "process_name": {"name": title},
        "process_sort_index": {"sort_index": stage.stage_index},
        "thread_name": {"name": "actions"},
    }
    found = [{"ph": "M", "name": k, "ts": 0, **place, "args": v} for k, v in names.items()]
    staleness = staleness_of(stage)
    for event in stage.events:
        at = {"ts": _us(event.start_ns - origin), **place}
        arguments = {
            "batch": event.batch_index,
            "iteration": event.iteration,
            "version": event.version,
        }
        if event.activity == "send":
            arguments["bytes"] = event.num_bytes
        if event.activity == "backward" and event.batch_index in staleness:
            arguments["staleness"] = updates = staleness[event.batch_index]
            found.append({"ph": "C", "name": "staleness", **at, "args": {"updates": updates}})
        name = slice_name(stage.stage_index, event)
        shown = {"name": name, "cat": event.activity, "dur": _us(event.duration_ns)}
        found.append({"ph": "X", **shown, **at, "args": arguments})
    return found


def _arrow(
    number: int, sender: StageTrace, send: Event, receiver: StageTrace, wait: Event, origin: int
) -> list[dict[str, Any]]:
    """Bind the two ends to the slices that enclose them: the send's start, the wait's last bit."""
    name = "activation" if send.kind == "F" else "error gradient"
    what = {"cat": "hop", "id": number, "name": name, "tid": 0}
    taken_ns = wait.end_ns - min(wait.duration_ns // 2, 500)
    start, end = _us(send.start_ns - origin), _us(taken_ns - origin)
    return [
        {"ph": "s", **what, "pid": sender.stage_index, "ts": start},
        {"ph": "f", "bp": "e", **what, "pid": receiver.stage_index, "ts": end},
    ]


def _us(ns: int) -> float:
    return ns / 1000
