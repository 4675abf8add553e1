"""What the planner predicts is what a pipeline of two processes then takes."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor, nn

import delaygrad as dg
from delaygrad.methods import BP, DDG, Method
from delaygrad.planning import Link

FORWARD_S, BACKWARD_S = 0.03, 0.06
METHODS: dict[str, Method] = {"bp": BP(), "ddg": DDG()}


class Sleep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SleepFunction.apply(x)


class SleepFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        time.sleep(FORWARD_S)
        return x * 1

    @staticmethod
    def backward(ctx, grad_output):
        time.sleep(BACKWARD_S)
        return grad_output


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), *(Sleep() for _ in range(4)), nn.Linear(4, 3))


def batch() -> tuple[Tensor, Tensor]:
    return torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)


def make_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def train(rank: int, world_size: int, name: str, cuts: list[str]) -> float:
    stage = dg.split(network(), world_size, cuts=cuts)[rank]
    pipeline = dg.DistributedPipeline(stage, F.cross_entropy, make_sgd, method=METHODS[name])
    for _ in range(3):
        pipeline.step(*batch())
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        pipeline.step(*batch())
        taken.append(time.perf_counter() - start)
    pipeline.flush()
    return statistics.median(taken)


@pytest.mark.timing
@pytest.mark.parametrize("name", ["bp", "ddg"])
def test_prediction_is_met(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)
    link = Link(bandwidth_bytes_per_s=1e9, latency_s=2e-4)
    plan = dg.plan(network(), batch()[0], method=METHODS[name], make_optimizer=make_sgd, link=link)
    (found,) = plan.forecasts
    assert found.cuts == ("3",)
    predicted_s = found.iteration_s
    measured_s = max(run_ranks(train, 2, args=(name, found.cuts)))
    assert 0.7 < predicted_s / measured_s < 1.3
