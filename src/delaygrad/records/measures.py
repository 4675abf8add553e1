"""What a trace says: where time went, how long a message takes, how stale gradients are.

Only *steady* iterations count. An iteration is steady if every stage has

    taken as many micro-batches forward as backward, and updated     (so it is not in the fill)
    trained for K iterations without an evaluation or checkpoint     (so that no stage is late)
    begun the next iteration right after it                          (so that its length is known)

The same iterations count for all stages. For each process, summed over its stages,

    forward + backward + average + update + send + wait + other = iteration
    idle share = wait / iteration

where other is what no activity covers: loading a batch, reporting, the loop itself.
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from delaygrad.records.clock import ACTIVITIES
from delaygrad.records.trace import Event, StageTrace, Trace

_BUSY = ("forward", "backward", "update")


def steady_iterations(trace: Trace) -> list[int]:
    """List the iterations that all stages spent in steady state."""
    num_stages = len(trace.stages)
    steady = [_steady(stage, num_stages) for stage in trace.stages]
    return sorted(set.intersection(*steady)) if steady else []


def measure_trace(trace: Trace) -> dict[str, Any]:
    """Summarise a trace in plain values.

    Returns:
        ``iteration_s`` is the mean length of the steady iterations, ``predicted_iteration_s`` the
        forward + backward + update of the busiest process (without delays, of all stages), and
        ``bottleneck_stage`` the busiest stage there. In ``stages``, times are means over the same
        iterations; ``other_s`` and ``idle_share`` are those of the stage's process.
        ``hop_latency_s`` is the median time from the start of a send until the receiver had the
        message, over the messages that a receiver was already waiting for; ``hops`` has it by
        boundary and direction. Unknown values are None: all of them without a steady iteration,
        idle shares and hops if stages take turns in one process.
    """
    steady = set(steady_iterations(trace))
    stages = [_measure_stage(stage, steady) for stage in trace.stages]
    for held in trace.by_process:
        _measure_process([stages[k] for k in held], trace.takes_turns)
    hops = [] if trace.takes_turns else _measure_hops(trace, steady)
    latencies = [latency for hop in hops for latency in hop.pop("latencies")]
    summary: dict[str, Any] = {
        "recorded_iterations": min((len(stage.iterations) for stage in trace.stages), default=0),
        "steady_iterations": len(steady),
        "num_processes": trace.num_processes,
        "iteration_s": None,
        "predicted_iteration_s": None,
        "bottleneck_stage": None,
        "hop_latency_s": statistics.median(latencies) if latencies else None,
        "hops": hops,
        "stages": stages,
    }
    if steady:
        busy = [sum(stage[f"{activity}_s"] for activity in _BUSY) for stage in stages]
        summary["iteration_s"] = statistics.mean(stage["iteration_s"] for stage in stages)
        # Without a delay the stages take turns.
        at_once = any(stage.delay for stage in trace.stages)
        apart = [[k] for k in range(len(stages))] if trace.takes_turns else trace.by_process
        of_processes = [sum(busy[k] for k in held) for held in apart]
        summary["predicted_iteration_s"] = max(of_processes) if at_once else sum(busy)
        slowest = apart[of_processes.index(max(of_processes))]
        summary["bottleneck_stage"] = max(slowest, key=lambda k: busy[k])
    return summary


def _steady(stage: StageTrace, num_stages: int) -> set[int]:
    counts = Counter((event.iteration, event.activity) for event in stage.events)

    def is_steady(iteration: int) -> bool:
        forwards, backwards, updates = (counts[iteration, activity] for activity in _BUSY)
        return forwards == backwards > 0 and updates > 0

    return {
        row.iteration
        for row in stage.iterations
        if row.end_ns is not None and row.settled >= num_stages and is_steady(row.iteration)
    }


def _measure_stage(stage: StageTrace, steady: set[int]) -> dict[str, Any]:
    measures: dict[str, Any] = {
        "stage": stage.stage_index,
        "delay": stage.delay,
        **_measure_staleness(stage, steady),
        "clock_uncertainty_s": 1e-9 * stage.clock.uncertainty_ns,
    }
    names = (*ACTIVITIES, "other", "iteration")
    if not steady:
        return {**measures, **{f"{name}_s": None for name in names}}
    ns = dict.fromkeys(names, 0)
    for event in stage.events:
        if event.iteration in steady:
            ns[event.activity] += event.duration_ns
    for i in stage.iterations:
        if i.iteration in steady and i.end_ns is not None:
            ns["iteration"] += i.end_ns - i.start_ns
    return {**measures, **{f"{name}_s": 1e-9 * ns[name] / len(steady) for name in names}}


def _measure_process(stages: list[dict[str, Any]], takes_turns: bool) -> None:
    """Give the stages of a process what they have in common: ``other_s`` and ``idle_share``."""
    iteration_s, other_s, idle_share = stages[0]["iteration_s"], None, None
    if iteration_s is not None and not takes_turns:
        spent = [sum(stage[f"{activity}_s"] for stage in stages) for activity in ACTIVITIES]
        other_s = iteration_s - sum(spent)
        idle_share = sum(stage["wait_s"] for stage in stages) / iteration_s
    for stage in stages:
        stage.update(other_s=other_s, idle_share=idle_share)


def staleness_of(stage: StageTrace) -> dict[int, int]:
    """Return, for each batch that went backward, the number of updates since its forward.

    Batches are left out if their forward is not in the trace, or was in the fill, where a stage
    does not update.
    """
    filled = {event.iteration for event in stage.events if event.activity == "backward"}
    forwards = {
        event.batch_index: event.version
        for event in stage.events
        if event.activity == "forward" and event.iteration in filled
    }
    return {
        event.batch_index: event.version - forwards[event.batch_index]
        for event in stage.events
        if event.activity == "backward" and event.batch_index in forwards
    }


def _measure_staleness(stage: StageTrace, steady: set[int]) -> dict[str, Any]:
    staleness = staleness_of(stage)
    observed = [
        staleness[event.batch_index]
        for event in stage.events
        if event.activity == "backward"
        and event.iteration in steady
        and event.batch_index in staleness
    ]
    return {
        "staleness_mean": statistics.mean(observed) if observed else None,
        "staleness_max": max(observed, default=None),
    }


def hops_of(trace: Trace) -> list[tuple[StageTrace, Event, StageTrace, Event]]:
    """Pair every send with the receive that took it: sender, send, receiver, wait."""
    pairs = []
    for receiver in trace.stages:
        for kind, neighbour in (("F", receiver.stage_index - 1), ("B", receiver.stage_index + 1)):
            if not 0 <= neighbour < len(trace.stages):
                continue
            sender = trace.stages[neighbour]
            sends = {
                event.batch_index: event
                for event in sender.events
                if (event.activity, event.kind) == ("send", kind)
            }
            pairs += [
                (sender, sends[event.batch_index], receiver, event)
                for event in receiver.events
                if (event.activity, event.kind) == ("wait", kind) and event.batch_index in sends
            ]
    return pairs


def _measure_hops(trace: Trace, steady: set[int]) -> list[dict[str, Any]]:
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for sender, send, receiver, wait in hops_of(trace):
        ends = sender.stage_index, receiver.stage_index
        if any(set(ends) <= set(held) for held in trace.by_process):
            continue
        content = "activation" if send.kind == "F" else "error gradient"
        row = rows.setdefault(
            ends, {"sender": ends[0], "receiver": ends[1], "content": content, "latencies": []}
        )
        row["num_bytes"] = send.num_bytes
        if wait.iteration in steady and wait.start_ns <= send.start_ns:
            row["latencies"].append(1e-9 * (wait.end_ns - send.start_ns))
    for row in rows.values():
        latencies = row["latencies"]
        row["num_waited_for"] = len(latencies)
        row["hop_latency_s"] = statistics.median(latencies) if latencies else None
    return [rows[ends] for ends in sorted(rows)]
