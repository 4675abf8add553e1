"""Replicas of a pipeline that average their gradients are one pipeline on the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import delaygrad as dg

NUM_BATCHES, STAGES, REPLICAS = 6, 2, 2


def build() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 3)]


def data() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 6), torch.randn(8, 3)) for _ in range(NUM_BATCHES)]


def train_replica(rank: int, world_size: int) -> list[Tensor]:
    replica, stage_index = divmod(rank, STAGES)
    pipelines = [dist.new_group([r * STAGES + k for k in range(STAGES)]) for r in range(REPLICAS)]
    of_stage = [dist.new_group([r * STAGES + k for r in range(REPLICAS)]) for k in range(STAGES)]
    replicas = of_stage[stage_index]

    def make_optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        def average(*_: object) -> None:
            for parameter in params:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, group=replicas)
                    parameter.grad /= dist.get_world_size(replicas)

        optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        optimizer.register_step_pre_hook(average)
        return optimizer

    stage = build()[stage_index]
    pipe = dg.DistributedPipeline(
        stage, mse_loss, make_optimizer, group=pipelines[replica], timeout_s=30
    )
    for inputs, targets in data():
        part = slice(replica * 4, replica * 4 + 4)
        pipe.step(inputs[part], targets[part])
    pipe.flush()
    return [parameter.detach() for parameter in stage.parameters()]


def test_averaging_in_a_step_hook_makes_replicas_one_pipeline() -> None:
    stages = build()
    whole = dg.LocalPipeline(
        stages, mse_loss, lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
    )
    for batch in data():
        whole.step(*batch)
    whole.flush()
    told = run_ranks(train_replica, STAGES * REPLICAS)
    for rank, parameters in enumerate(told):
        torch.testing.assert_close(parameters, list(stages[rank % STAGES].parameters()))
