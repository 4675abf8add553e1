"""A method that the library does not know runs on both runtimes without touching them.

The fully decoupled schedule, where a batch climbs one stage per iteration and its error gradient,
shrunk by beta at every boundary, comes down one stage per iteration:

    iteration t, stage k    forward batch t-k; backward batch t - 2(K-1) + k; delay 2(K-1-k)

(Zhuang et al., FDG, arXiv:1906.03108.)
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from exact import assert_same
from networks import NETWORKS, OPTIMIZERS, batches, into_stages
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.runtime import Pipeline
from delaygrad.schedule import Schedule

UNLOCKED = Schedule("unlocked", lambda k, K: k, lambda k, K: 2 * (K - 1 - k))
NUM_BATCHES = 10


@dataclass(frozen=True)
class Decoupled(dg.Method):
    beta: float = 0.5

    @property
    def name(self) -> str:
        return "decoupled"

    @property
    def schedule(self) -> Schedule:
        return UNLOCKED

    def outgoing_gradient(self, grad_input: Tensor, stage_index: int, num_stages: int) -> Tensor:
        return grad_input * self.beta


@dataclass
class Passage:
    """A batch at a stage: a copy of the stage as it was, its input and what came out."""

    stage: nn.Module
    x: Tensor
    out: Tensor


def naive_loop(
    stages: Sequence[nn.Module], optimizer: str, beta: float
) -> tuple[list[Tensor | None], list[nn.Module]]:
    """The rule of the title, with every stage copied for every batch; then the drain."""
    true = copy.deepcopy(list(stages))
    optimizers = [OPTIMIZERS[optimizer](list(stage.parameters())) for stage in true]
    data = list(batches(NUM_BATCHES, (2, 4, 4), sizes=(4, 3)))
    last = len(true) - 1
    passages: dict[tuple[int, int], Passage] = {}
    deltas: dict[tuple[int, int], Tensor] = {}
    losses: list[Tensor | None] = []
    for t in range(NUM_BATCHES + 2 * last):
        loss = None
        for k, stage in enumerate(true):
            s = t - k
            if 0 <= s < NUM_BATCHES:
                source = data[s][0] if k == 0 else passages[k - 1, s].out
                x = source.detach().clone().requires_grad_(k > 0)
                at_t = copy.deepcopy(stage)
                at_t.zero_grad(set_to_none=True)
                out = at_t(x.clone())
                for ours, moved in zip(stage.buffers(), at_t.buffers(), strict=True):
                    ours.copy_(moved)
                if k == last:
                    out = cross_entropy(out, data[s][1])
                    loss = out.detach()
                passages[k, s] = Passage(at_t, x, out)
        if t < NUM_BATCHES:
            losses.append(loss)
        for k in range(last, -1, -1):
            s = t - 2 * last + k
            if 0 <= s < NUM_BATCHES:
                passage = passages[k, s]
                passage.out.backward(deltas.pop((k + 1, s), None))
                if k > 0:
                    deltas[k, s] = beta * passage.x.grad
                for parameter, was in zip(
                    true[k].parameters(), passage.stage.parameters(), strict=True
                ):
                    parameter.grad = was.grad
                optimizers[k].step()
    return losses, true


def build_stages(num_stages: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return into_stages(NETWORKS["in-place convolutions"][0](), num_stages)


def drive(
    pipe: Pipeline, *, start: int = 0, num_batches: int = NUM_BATCHES
) -> tuple[list[Any], dict[str, Any]]:
    losses = []
    inputs, targets = torch.empty(0), torch.empty(0)
    for x, y in list(batches(num_batches, (2, 4, 4), sizes=(4, 3)))[start:]:
        inputs, targets = x.clone(), y.clone()
        losses.append(pipe.step(inputs, targets))
        inputs.fill_(torch.nan)  # the caller may refill what it gave
        targets.fill_(0)
    if num_batches == NUM_BATCHES:
        pipe.flush()
    file = io.BytesIO()
    torch.save(pipe.state_dict(), file)
    file.seek(0)
    return losses, torch.load(file, weights_only=True)


def on_ranks(rank: int, world_size: int, optimizer: str, beta: float) -> Any:
    stage = build_stages(world_size)[rank]
    pipe = dg.DistributedPipeline(
        stage, cross_entropy, OPTIMIZERS[optimizer], method=Decoupled(beta), timeout_s=20
    )
    return drive(pipe)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize(("optimizer", "beta"), [("nesterov", 0.5), ("adam", 1.0)])
def test_it_matches_its_naive_loop_in_one_process(
    num_stages: int, optimizer: str, beta: float
) -> None:
    stages = build_stages(num_stages)
    expected_losses, expected = naive_loop(stages, optimizer, beta)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS[optimizer], method=Decoupled(beta))
    losses, _ = drive(pipe)
    assert_same(losses, expected_losses)
    assert losses[: num_stages - 1] == [None] * (num_stages - 1)  # nothing has arrived yet
    assert_same([dict(s.state_dict()) for s in stages], [dict(s.state_dict()) for s in expected])


def test_it_matches_the_local_runtime_on_three_ranks() -> None:
    stages = build_stages(3)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["nesterov"], method=Decoupled(0.5))
    losses, state = drive(pipe)
    told = run_ranks(on_ranks, 3, args=("nesterov", 0.5))
    assert_same(told[2][0], losses)
    for rank, (_, of_rank) in enumerate(told):
        assert_same(of_rank["stages"], {str(rank): state["stages"][str(rank)]})


@pytest.mark.parametrize("stop", [1, 2, 6])
def test_its_state_holds_what_waits_for_a_lagging_stage(stop: int) -> None:
    def make(seed: int) -> dg.LocalPipeline:
        stages = build_stages(3)
        for parameter in (p for stage in stages for p in stage.parameters()):
            parameter.data.add_(seed)
        return dg.LocalPipeline(
            stages, cross_entropy, OPTIMIZERS["nesterov"], method=Decoupled(0.5)
        )

    losses, end = drive(make(0))
    early, saved = drive(make(0), num_batches=stop)
    resumed = make(1)
    resumed.load_state_dict(saved)
    late, resumed_end = drive(resumed, start=stop)
    assert_same(early + late, losses)
    assert_same(resumed_end, end)


def test_its_settings_are_part_of_the_state() -> None:
    stages = build_stages(2)
    state = dg.LocalPipeline(
        stages, cross_entropy, OPTIMIZERS["sgd"], method=Decoupled(0.5)
    ).state_dict()
    other = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"], method=Decoupled(0.9))
    with pytest.raises(dg.CheckpointError, match=r"beta=0.5\), here: Decoupled\(beta=0.9\)"):
        other.load_state_dict(state)
