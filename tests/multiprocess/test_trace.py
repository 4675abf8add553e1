"""A timeline of two real processes says what they did, whatever their clocks show.

The stages sleep for known times, so that the processors' other work matters little; the bounds are
generous all the same.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from commands import here, summary, train
from ranks import run_ranks
from timelines import check_chrome_trace
from torch import Tensor, nn

import delaygrad as dg
from delaygrad.records import ClockReading, StageTrace, Trace, measure_trace, read_trace
from delaygrad.results import chrome_trace
from delaygrad.runtime.clock_sync import read_clocks

pytestmark = [pytest.mark.slow, pytest.mark.timing]

# Seconds of forward and backward.
SLEEP_S = ((0.020, 0.040), (0.040, 0.080))
AHEAD_NS = 5_000_000_000
TRACED = 12


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.backward_s = backward_s
        time.sleep(forward_s)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.backward_s)
        return grad, None, None


class Sleeper(nn.Module):
    def __init__(self, forward_s: float, backward_s: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.times_s = forward_s, backward_s

    def forward(self, x: Tensor) -> Tensor:
        return _Sleep.apply(self.linear(x), *self.times_s)


def record(
    rank: int, world_size: int, ahead_ns: int
) -> tuple[list[list[ClockReading]], list[StageTrace]]:
    def now() -> int:
        return time.perf_counter_ns() + rank * ahead_ns

    torch.manual_seed(rank)  # equal parameters on two stages would be refused as copies
    pipe = dg.DistributedPipeline(
        Sleeper(*SLEEP_S[rank]),
        nn.functional.mse_loss,
        lambda params: torch.optim.SGD(params, lr=0.01),
        timeout_s=30,
    )
    pipe._workers[pipe.stage_index].clock.now = now
    readings = [read_clocks(dist.group.WORLD, now)]
    for iteration in range(TRACED + 8):
        if iteration == 4:
            pipe.start_trace(TRACED)
        if iteration == 9:
            pipe.predict(torch.zeros(2, 4))  # as an evaluation does: it is not part of training
        pipe.step(torch.zeros(2, 4), torch.zeros(2, 4))
    pipe.flush()
    readings.append(read_clocks(dist.group.WORLD, now))
    return readings, pipe.stage_traces()


@pytest.fixture(scope="module", params=[0, AHEAD_NS], ids=["one clock", "two clocks"])
def recorded(request: pytest.FixtureRequest) -> tuple[int, list[list[ClockReading]], Trace]:
    """How far rank 1's clock was ahead, what was read of it, and the trace of two stages."""
    results = run_ranks(record, 2, args=(request.param,))
    readings = results[0][0]
    stages = tuple(
        stage.on_first_clock([reading[rank] for reading in readings])
        for rank, (_, (stage,)) in enumerate(results)
    )
    return request.param, readings, Trace(method="DDG()", stages_per_process=(1, 1), stages=stages)


def test_offset_of_a_clock_is_found(
    recorded: tuple[int, list[list[ClockReading]], Trace],
) -> None:
    ahead_ns, readings, _ = recorded
    for zero, one in readings:
        assert zero.offset_ns == 0
        assert abs(one.offset_ns - ahead_ns) <= one.uncertainty_ns + 1
        assert one.uncertainty_ns < 20_000_000  # some 0.1 ms on a quiet machine


def test_what_is_measured_is_what_was_slept(
    recorded: tuple[int, list[list[ClockReading]], Trace],
) -> None:
    found = measure_trace(recorded[2])
    # 12 recorded from iteration 4 on; the evaluation before the tenth costs one and two more.
    assert (found["recorded_iterations"], found["steady_iterations"]) == (TRACED, TRACED - 3)
    first, last = found["stages"]
    # One stage after the other would take 1.5 times as long as predicted.
    assert 0.120 <= found["predicted_iteration_s"] < found["iteration_s"] < 0.240
    assert found["iteration_s"] < 1.4 * found["predicted_iteration_s"]
    assert found["bottleneck_stage"] == 1
    for row, (forward_s, backward_s) in zip((first, last), SLEEP_S, strict=True):
        assert forward_s <= row["forward_s"] < forward_s + 0.040
        assert backward_s <= row["backward_s"] < backward_s + 0.040
        assert row["other_s"] < 0.030 and row["send_s"] < 0.030
    assert 0.25 < first["idle_share"] < 0.65  # it works for 60 ms of 120
    assert last["idle_share"] < 0.25
    assert [row["staleness_mean"] for row in found["stages"]] == [1, 0]
    assert [row["delay"] for row in found["stages"]] == [1, 0]


def test_hop_latency_is_that_of_a_message_not_of_the_clocks(
    recorded: tuple[int, list[list[ClockReading]], Trace],
) -> None:
    hops = {hop["content"]: hop for hop in measure_trace(recorded[2])["hops"]}
    # The fast stage 0 waits for every error gradient; its activations come before they are wanted.
    waited_for = hops["error gradient"]
    # Of the steady iterations, all but the first, whose message was sent before the trace began.
    assert waited_for["num_waited_for"] == TRACED - 4
    assert 0 < waited_for["hop_latency_s"] < 0.040
    assert hops["activation"]["num_waited_for"] <= 2
    assert waited_for["num_bytes"] == 2 * 4 * 4


def test_chrome_trace_of_two_processes_is_sound(
    recorded: tuple[int, list[list[ClockReading]], Trace],
) -> None:
    document = chrome_trace(recorded[2])
    check_chrome_trace(document, 2)
    uncertainty_us = recorded[2].stages[1].clock.uncertainty_ns / 1000
    ends = {event["id"]: event["ts"] for event in document["traceEvents"] if event["ph"] == "f"}
    for event in document["traceEvents"]:
        if event["ph"] == "s":  # no message comes before it is sent
            assert event["ts"] <= ends[event["id"]] + uncertainty_us + 1


# 15 iterations per epoch: an evaluation and several checkpoints lie within the window.
TRACE = ("--iterations", 50, "--trace", 30, "--checkpoint-every", 9)


def test_train_writes_a_timeline_and_changes_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(train(tmp_path / "far", 2, *TRACE, "--runtime", "distributed"))
    told = json.loads(capsys.readouterr().out)
    here(train(tmp_path / "near", 2, *TRACE[:2], "--checkpoint-every", 9))
    assert (
        summary(tmp_path / "far")["parameters_sha256"]
        == (summary(tmp_path / "near")["parameters_sha256"])
    )
    assert not (tmp_path / "near" / "trace-events.json").exists()
    trace = read_trace(tmp_path / "far")
    measures = summary(tmp_path / "far")["trace"]
    assert measures == json.loads(json.dumps(measure_trace(trace)))
    assert measures["recorded_iterations"] == 30 and measures["num_processes"] == 2
    assert 0 < measures["steady_iterations"] < 25
    assert [row["staleness_max"] for row in measures["stages"]] == [1, 0]
    assert all(0 <= row["idle_share"] < 1 for row in measures["stages"])
    assert all(row["clock_uncertainty_s"] < 20e-3 for row in measures["stages"])
    check_chrome_trace(json.loads((tmp_path / "far" / "trace.json").read_text()), 2)
    assert (tmp_path / "far" / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert told["timeline"] == str(tmp_path / "far" / "trace.png")


def test_a_resumed_run_records_anew(tmp_path: Path) -> None:
    here(train(tmp_path, 2, *TRACE))
    expected = summary(tmp_path)["parameters_sha256"]
    assert [i.iteration for i in read_trace(tmp_path).stages[0].iterations] == list(range(13, 43))
    (tmp_path / "summary.json").unlink()  # as if it had been killed after iteration 45
    here(["resume", str(tmp_path)])
    assert summary(tmp_path)["parameters_sha256"] == expected
    assert [i.iteration for i in read_trace(tmp_path).stages[0].iterations] == list(range(45, 50))
    assert summary(tmp_path)["trace"]["recorded_iterations"] == 5
