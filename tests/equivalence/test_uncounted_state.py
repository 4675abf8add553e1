"""State that a forward changes without PyTorch counting it; random numbers not of PyTorch."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from exact import assert_same
from networks import CLASSES, batches, sgd
from ranks import run_ranks
from torch import Tensor, nn
from torch.ao.quantization import (
    default_fused_act_fake_quant,
    default_fused_per_channel_wt_fake_quant,
)
from torch.nn.functional import cross_entropy, linear

import delaygrad as dg
from delaygrad.errors import CheckpointError, StageError


class Quantised(nn.Module):
    """A layer as quantisation-aware training makes it: observers write into buffers, uncounted."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.weights = default_fused_per_channel_wt_fake_quant()
        self.activations = default_fused_act_fake_quant()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weights(self.linear.weight)
        return torch.tanh(self.activations(linear(x, weight, self.linear.bias)))


class Table(nn.Module):
    """A large buffer that each forward reads, and then writes in a way that is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("table", torch.ones(400, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x)) * self.table.mean(0)
        self.table.data.mul_(0.9)
        return y


def network(make: Callable[[], nn.Module] = Quantised) -> list[nn.Module]:
    torch.manual_seed(1)
    return [*(nn.Sequential(nn.Linear(6, 6), make()) for _ in range(3)), nn.Linear(6, CLASSES)]


def pipeline(stages: list[nn.Module], *, recompute: bool) -> dg.LocalPipeline:
    torch.manual_seed(3)
    return dg.LocalPipeline(stages, cross_entropy, sgd, method=dg.DDG(recompute=recompute))


def data() -> list[tuple[Tensor, Tensor]]:
    return list(batches(9, (6,)))


@pytest.mark.parametrize("make", [Quantised, Table])
def test_recomputation_restores_what_is_changed_without_counting(
    make: Callable[[], nn.Module],
) -> None:
    pipes = [pipeline(network(make), recompute=recompute) for recompute in (False, True)]
    for batch in data():
        assert_same(*[pipe.step(*batch) for pipe in pipes])
    for pipe in pipes:
        pipe.flush()
    assert_same(*[[dict(s.state_dict()) for s in pipe.stages] for pipe in pipes])


@pytest.mark.parametrize("recompute", [False, True], ids=["graph", "recompute"])
@pytest.mark.parametrize("make", [Quantised, Table])
def test_a_fresh_network_takes_buffers_of_other_shapes_if_torch_does(
    make: Callable[[], nn.Module], recompute: bool
) -> None:
    straight = pipeline(network(make), recompute=recompute)
    for batch in data()[:5]:
        straight.step(*batch)
    resumed = pipeline(network(make), recompute=recompute)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for batch in data()[5:]:
        assert_same(resumed.step(*batch), straight.step(*batch))


def test_buffers_of_other_shapes_that_torch_refuses_are_refused() -> None:
    class Fixed(nn.Linear):
        def __init__(self, size: int) -> None:
            super().__init__(6, 6)
            self.register_buffer("fixed", torch.zeros(size))

    pipes = [pipeline([Fixed(size), nn.Linear(6, CLASSES)], recompute=False) for size in (1, 2)]
    with pytest.raises(CheckpointError, match=r"fixed there: float32 \[1\], here: float32 \[2\]"):
        pipes[1].load_state_dict(pipes[0].state_dict())


class Noisy(nn.Module):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.draw())


OWN = torch.Generator().manual_seed(5)
DRAWS: dict[str, Callable[[], float]] = {
    "random": random.random,
    "numpy": np.random.random,
    "generator": lambda: torch.rand((), generator=OWN).item(),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_random_numbers_that_are_not_torchs_are_an_error_under_recompute(draw: str) -> None:
    pipe = pipeline(network(lambda: Noisy(DRAWS[draw])), recompute=True)
    told = r"\[stage 2, iteration 1, .*another output .*torch's default generators"
    with pytest.raises(StageError, match=told):
        for batch in data():
            pipe.step(*batch)


def train_ranks(rank: int, world_size: int) -> dict[str, Tensor]:
    stages = network()
    torch.manual_seed(3)
    with dg.DistributedPipeline(
        stages[rank], cross_entropy, sgd, method=dg.DDG(recompute=True)
    ) as pipe:
        for batch in data():
            pipe.step(*batch)
        pipe.flush()
    return dict(stages[rank].state_dict())


def test_ranks_recompute_as_one_process_does() -> None:
    pipe = pipeline(network(), recompute=False)
    for batch in data():
        pipe.step(*batch)
    pipe.flush()
    assert_same(run_ranks(train_ranks, 4), [dict(s.state_dict()) for s in pipe.stages])
