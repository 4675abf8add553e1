"""A recorded timeline: a few iterations as a figure, and all of it as a trace for browsers.

The figure has a row per stage. Perfetto and chrome://tracing show the trace-event format:

    process    a stage; its one thread is the row of its slices, which do not overlap
    slice      an action (``2F7``), the send that follows it, or the wait before it
    arrow      from a send to the wait of the stage that took the message
    counter    observed staleness of the gradients of a stage, in updates

References:
    "Trace Event Format", the Chromium project; https://ui.perfetto.dev opens the file.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delaygrad.records import Event, StageTrace, Trace
from delaygrad.records.measures import hops_of, staleness_of, steady_iterations
from delaygrad.results.bars import activity_looks, legend
from delaygrad.results.figure import Panel, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WIDTH, _LEFT, _RIGHT = 900.0, 60.0, 12.0
_ROW = 34.0
_ITERATIONS = 4
_LETTERED = ("forward", "backward")
_LEAST_LETTERED = 24.0  # points


def timeline_panel(trace: Trace, description: str) -> Panel:
    """Draw some steady iterations, or the first ones where none is steady.

    Time that no activity covers is named "other": data loading, evaluation, Python between the
    actions; where the stages take turns in one process, mostly the work of the other stages.

    Args:
        trace: of all stages.
        description: what it is, for readers who cannot see it.
    """
    start_ns, end_ns = window(trace)
    unit_ns, unit = (1e6, "ms") if end_ns - start_ns > 1e6 else (1e3, "µs")
    length = (end_ns - start_ns) / unit_ns
    events = (event for stage in trace.stages for event in stage.events)
    averaged = any(event.activity == "average" for event in events)
    looks = activity_looks("other", averaged=averaged)

    def draw(axes: Axes) -> None:
        for row, stage in enumerate(trace.stages):
            axes.barh(row, length, height=0.8, **looks["other"])
            _draw_stage(axes, row, stage, start_ns, end_ns, unit_ns)
        names = [f"stage {stage.stage_index}" for stage in trace.stages]
        axes.set(
            xlim=(0, length), ylim=(len(names) - 0.5, -0.5), xlabel=f"time ({unit})",
            yticks=range(len(names)), yticklabels=names,
        )  # fmt: skip
        legend(axes, looks)

    return Panel(
        draw=draw,
        description=f"{description}: {len(trace.stages)} stages over {length:.3g} {unit}",
        width=_WIDTH,
        height=26 + 42 + _ROW * len(trace.stages),
        margins=(_LEFT, _RIGHT, 26, 42),
    )


def _draw_stage(
    axes: Axes, row: int, stage: StageTrace, start_ns: int, end_ns: int, unit_ns: float
) -> None:
    looks = activity_looks("other")
    per_point = (end_ns - start_ns) / (_WIDTH - _LEFT - _RIGHT)
    for event in stage.events:
        begin_ns, finish_ns = max(event.start_ns, start_ns), min(event.end_ns, end_ns)
        if begin_ns >= finish_ns:
            continue
        left, width = (begin_ns - start_ns) / unit_ns, (finish_ns - begin_ns) / unit_ns
        axes.barh(row, width, left=left, height=0.8, **looks.get(event.activity, looks["other"]))
        if event.activity in _LETTERED and finish_ns - begin_ns > _LEAST_LETTERED * per_point:
            name = f"{event.kind}{event.batch_index}"
            middle: dict[str, Any] = {"ha": "center", "va": "center", "clip_on": True}
            axes.text(left + width / 2, row, name, color=colour("paper"), **middle)


def window(trace: Trace) -> tuple[int, int]:
    """Choose from when to when to draw: a few iterations of stage 0, in the middle of the trace."""
    first = trace.stages[0]
    steady = set(steady_iterations(trace))
    closed = [i for i in first.iterations if i.end_ns is not None]
    shown = [i for i in closed if i.iteration in steady] or closed
    if not shown:
        start_ns = first_ns(trace)
        ends = (event.end_ns for stage in trace.stages for event in stage.events)
        return start_ns, max(start_ns + 1, max(ends, default=0))
    begin = shown[max(0, (len(shown) - _ITERATIONS) // 2)]
    length_ns = statistics.median((i.end_ns or 0) - i.start_ns for i in shown)
    return begin.start_ns, begin.start_ns + max(1, round(_ITERATIONS * length_ns))


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
