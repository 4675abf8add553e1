"""A pipeline records what its schedule prescribes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from timelines import check_chrome_trace
from torch import nn

import delaygrad as dg
from delaygrad.records import ACTIVITIES, Trace, measure_trace
from delaygrad.records.measures import steady_iterations
from delaygrad.results import chrome_trace

WIDTH = 4


def pipeline(num_stages: int, method: dg.Method) -> dg.LocalPipeline:
    stages = [nn.Linear(WIDTH, WIDTH) for _ in range(num_stages)]
    make = lambda params: torch.optim.SGD(params, lr=0.01)  # noqa: E731
    return dg.LocalPipeline(stages, nn.functional.mse_loss, make, method=method)


def steps(pipe: dg.LocalPipeline, count: int, batch_size: int = 8) -> None:
    for _ in range(count):
        pipe.step(torch.zeros(batch_size, WIDTH), torch.zeros(batch_size, WIDTH))


def trace_of(pipe: dg.LocalPipeline) -> Trace:
    stages = tuple(pipe.stage_traces())
    return Trace(method=repr(pipe.method), stages_per_process=(len(stages),), stages=stages)


def staleness(lag: int, micro_batches: int, batch: int) -> int:
    """Updates between a forward and its backward, counted one tick after the other."""
    version, at_forward = 0, 0
    for tick in range(batch + lag + 1):
        if tick == batch:
            at_forward = version
        if tick == batch + lag:
            return version - at_forward
        version += tick >= lag and (tick - lag + 1) % micro_batches == 0
    raise AssertionError


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize(
    "method",
    [dg.BP(), dg.DDG(), dg.DDG(slack=1), dg.DDG(micro_batches=2), dg.DDG(recompute=True)],
    ids=str,
)
def test_staleness_is_what_the_schedule_prescribes(method: dg.Method, num_stages: int) -> None:
    pipe = pipeline(num_stages, method)
    steps(pipe, 8)
    pipe.start_trace(30)
    steps(pipe, 32)
    trace = trace_of(pipe)
    found = measure_trace(trace)
    steady = steady_iterations(trace)
    assert len(steady) == 30
    parts = method.schedule.micro_batches
    for k, row in enumerate(found["stages"]):
        lag = method.schedule.lag(k, num_stages)
        assert row["delay"] == method.schedule.delay(k, num_stages) == row["staleness_max"]
        first = max(8 * parts, steady[0] * parts - lag)  # its forward is in the trace
        batches = range(first, (steady[-1] + 1) * parts - lag)
        expected = [staleness(lag, parts, batch) for batch in batches]
        assert row["staleness_mean"] == pytest.approx(sum(expected) / len(expected))


def test_a_trace_holds_every_activity_of_its_window_and_no_other() -> None:
    pipe = pipeline(3, dg.DDG())
    steps(pipe, 5)
    pipe.start_trace(4)
    steps(pipe, 6)
    pipe.flush()
    trace = trace_of(pipe)
    for k, stage in enumerate(trace.stages):
        assert [row.iteration for row in stage.iterations] == [5, 6, 7, 8]
        counts = Counter(event.activity for event in stage.events)
        neighbours = (k > 0) + (k < 2)
        assert counts == {
            "forward": 4, "backward": 4, "update": 4,
            "send": 4 * neighbours, "wait": 4 * neighbours,
        }  # fmt: skip
        sizes = {event.num_bytes for event in stage.events if event.activity == "send"}
        assert sizes == {8 * WIDTH * 4}
    check_chrome_trace(chrome_trace(trace), 3)


def test_evaluation_checkpoint_and_drain_interrupt_a_steady_state() -> None:
    pipe = pipeline(1, dg.DDG())
    pipe.start_trace(12)
    steps(pipe, 3)
    pipe.predict(torch.zeros(2, WIDTH))
    steps(pipe, 3)
    state = pipe.state_dict()
    steps(pipe, 3)
    pipe.flush()
    steps(pipe, 3)
    # One stage: what counts is every iteration that has one before and one after it.
    assert steady_iterations(trace_of(pipe)) == [1, 4, 7, 10]
    other = pipeline(1, dg.DDG())
    other.load_state_dict(state)
    other.start_trace(2)
    steps(other, 3)
    assert [row.settled for row in other.stage_traces()[0].iterations] == [0, 1]


def test_seconds_are_counted_with_and_without_a_trace() -> None:
    pipe = pipeline(2, dg.DDG())
    steps(pipe, 3)
    before = pipe.stage_seconds()
    pipe.start_trace(3)
    steps(pipe, 3)
    for stage, early, late in zip(pipe.stage_traces(), before, pipe.stage_seconds(), strict=True):
        assert set(late) == set(ACTIVITIES)
        for activity in ACTIVITIES:
            recorded = sum(e.duration_ns for e in stage.events if e.activity == activity)
            assert late[activity] - early[activity] == pytest.approx(1e-9 * recorded, abs=1e-9)
