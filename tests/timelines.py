"""Timelines of delayed-gradient pipelines as they should be, from a recurrence of its own."""

from __future__ import annotations

import itertools
from typing import Any

from delaygrad.records import Event, Iteration, StageTrace, Trace

MS = 1_000_000


def simulated(
    busy_ms: list[tuple[int, int, int]],
    num_iterations: int,
    *,
    hop_ms: int = 0,
    send_ms: int = 0,
    between_ms: int = 0,
    num_bytes: int = 64,
) -> Trace:
    """Play DDG through from its fill on, every stage in a process of its own.

    Args:
        busy_ms: forward, backward and update of each stage.
        hop_ms: from the start of a send until the message is there.
        send_ms: how long the sender is busy with it.
        between_ms: from the end of a stage's iteration to the start of its next one.
    """
    last = len(busy_ms) - 1
    clocks = [0 for _ in busy_ms]
    events: list[list[Event]] = [[] for _ in busy_ms]
    starts: list[list[int]] = [[] for _ in busy_ms]
    arrivals: dict[tuple[int, str, int], int] = {}
    versions = [0 for _ in busy_ms]

    def add(k: int, activity: str, kind: str, batch: int, t: int, end: int) -> None:
        size = num_bytes if activity == "send" else 0
        row = (activity, kind, batch, t, clocks[k], end - clocks[k], versions[k], size)
        events[k].append(Event(*row))
        clocks[k] = end

    def receive(k: int, kind: str, batch: int, t: int) -> None:
        add(k, "wait", kind, batch, t, max(clocks[k], arrivals[k, kind, batch]))

    def work(k: int, activity: str, kind: str, batch: int, t: int, ms: int) -> None:
        add(k, activity, kind, batch, t, clocks[k] + ms * MS)

    def send(k: int, to: int, kind: str, batch: int, t: int) -> None:
        arrivals[to, kind, batch] = clocks[k] + hop_ms * MS
        work(k, "send", kind, batch, t, send_ms)

    for t in range(num_iterations):
        for k, (forward_ms, _, _) in enumerate(busy_ms):
            clocks[k] += between_ms * MS if t else 0
            starts[k].append(clocks[k])
            if k > 0:
                receive(k, "F", t, t)
            work(k, "forward", "F", t, t, forward_ms)
            if k < last:
                send(k, k + 1, "F", t, t)
        for k in range(last, -1, -1):
            _, backward_ms, update_ms = busy_ms[k]
            batch = t - (last - k)
            if batch < 0:
                continue
            if k < last:
                receive(k, "B", batch, t)
            work(k, "backward", "B", batch, t, backward_ms)
            if k > 0:
                send(k, k - 1, "B", batch, t)
            work(k, "update", "U", batch, t, update_ms)
            versions[k] += 1
    stages = tuple(
        StageTrace(
            stage_index=k,
            delay=last - k,
            events=tuple(events[k]),
            iterations=tuple(
                Iteration(t, start, end, t)
                for t, (start, end) in enumerate(
                    zip(starts[k], [*starts[k][1:], None], strict=False)
                )
            ),
        )
        for k in range(len(busy_ms))
    )
    return Trace(method="DDG()", stages_per_process=(1,) * len(busy_ms), stages=stages)


def check_chrome_trace(document: dict[str, Any], num_stages: int) -> None:
    """Fail unless it is a sound trace-event document of a pipeline with one micro-batch per batch.

    By hand from the format's description: types, a row without overlaps, one forward, backward and
    update per batch at most, and arrows whose ends lie within a send and the wait that took it.
    """
    events = document["traceEvents"]
    assert document["displayTimeUnit"] == "ms"
    for event in events:
        assert event["ph"] in {"M", "X", "C", "s", "f"} and isinstance(event["name"], str)
        assert type(event["pid"]) is int and type(event["tid"]) is int
        assert isinstance(event["ts"], int | float) and event["ts"] >= 0
        assert event["ph"] != "X" or event["dur"] >= 0
    named = [e["pid"] for e in events if e["ph"] == "M" and e["name"] == "process_name"]
    assert named == list(range(num_stages))

    slices = [event for event in events if event["ph"] == "X"]
    actions = [event["name"] for event in slices if event["cat"] not in ("send", "wait")]
    assert len(actions) == len(set(actions))
    for stage in range(num_stages):
        row = sorted((e["ts"], e["ts"] + e["dur"]) for e in slices if e["pid"] == stage)
        for (_, end), (start, _) in itertools.pairwise(row):
            assert end <= start + 1e-3  # to the nanosecond
        batches = {
            kind: [e["args"]["batch"] for e in slices if _is_action(e, stage, kind)]
            for kind in "FBU"
        }
        for kind, found in batches.items():
            assert found == list(range(found[0], found[0] + len(found))), kind
        assert batches["B"] == batches["U"]

    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert starts.keys() == ends.keys()
    for number, start in starts.items():
        end = ends[number]
        assert end["bp"] == "e" and (start["name"], start["cat"]) == (end["name"], end["cat"])
        (sent,) = [e for e in slices if e["cat"] == "send" and _encloses(e, start)]
        taken = [e for e in slices if e["cat"] == "wait" and _encloses(e, end)]
        assert sent["args"]["batch"] in [e["args"]["batch"] for e in taken]
        assert abs(start["pid"] - end["pid"]) == 1


def _is_action(event: dict[str, Any], stage: int, kind: str) -> bool:
    return event["name"] == f"{stage}{kind}{event['args']['batch']}" and event["pid"] == stage


def _encloses(event: dict[str, Any], point: dict[str, Any]) -> bool:
    inside = event["ts"] - 1e-3 <= point["ts"] <= event["ts"] + event["dur"] + 1e-3
    return inside and event["pid"] == point["pid"]
