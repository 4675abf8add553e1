"""A stage that trains what it does not own is told so; what it may use passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import OPTIMIZERS
from ranks import run_ranks_raw
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import delaygrad as dg

METHODS = [dg.DDG(), dg.BP(), dg.DDG(recompute=True), dg.DDG(weights="live"), dg.DNI()]


class Call(nn.Module):
    """Call a function of the stage's input; a reference in it is no parameter of the module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.body = nn.Linear(6, 6)


def batch() -> tuple[Tensor, Tensor]:
    return torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4])


def pipe_of(stages: list[nn.Module], method: dg.Method, loss_fn: Any = None) -> dg.LocalPipeline:
    return dg.LocalPipeline(stages, loss_fn or cross_entropy, OPTIMIZERS["sgd"], method=method)


def tied(model: Model) -> list[nn.Module]:
    head = Call(lambda x: x @ model.embedding.weight.T)
    return [model.embedding, nn.Sequential(model.body, nn.Tanh()), nn.Sequential(head)]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_head_that_closes_over_the_embedding_is_an_error(method: dg.Method) -> None:
    pipe = pipe_of(tied(Model()), method)
    told = r"stage 2.*from outside.*stage: 2, shape: \(5, 6\), parameter: embedding\.weight"
    with pytest.raises(dg.StageError, match=told):
        pipe.step(*batch())


def train_tied(rank: int, world_size: int) -> None:
    stage = tied(Model())[rank]
    with dg.DistributedPipeline(stage, cross_entropy, OPTIMIZERS["sgd"], timeout_s=20) as pipe:
        pipe.step(*batch())
        pipe.flush()


def test_a_rank_that_closes_over_another_ranks_parameter_is_told() -> None:
    error = run_ranks_raw(train_tied, 3)[2].error
    assert error is not None
    assert "stage: 2, shape: (5, 6), parameter: embedding.weight" in error


def test_a_middle_stage_is_looked_at_too() -> None:
    model = Model()
    middle = Call(lambda x: x + model.body.bias)
    pipe = pipe_of([model.embedding, middle, nn.Linear(6, 5)], dg.DDG())
    with pytest.raises(dg.StageError, match=r"stage: 1, shape: \(6,\), parameter: body\.bias"):
        pipe.step(*batch())


def test_a_loss_over_parameters_of_other_stages_is_an_error() -> None:
    stages: list[nn.Module] = [nn.Embedding(5, 6), nn.Linear(6, 5)]

    def with_penalty(outputs: Tensor, targets: Tensor) -> Tensor:
        norm = sum(
            (p.square().sum() for stage in stages for p in stage.parameters()), torch.zeros(())
        )
        return cross_entropy(outputs, targets) + 0.01 * norm

    with pytest.raises(dg.StageError, match=r"stage: 1, shape: \(5, 6\), parameter: weight"):
        pipe_of(stages, dg.DDG(), with_penalty).step(*batch())


def test_a_tensor_that_is_no_parameter_is_an_error_without_a_name() -> None:
    scale = torch.ones(6, requires_grad=True)
    stages = [nn.Embedding(5, 6), nn.Sequential(Call(lambda x: x * scale), nn.Linear(6, 5))]
    with pytest.raises(dg.StageError, match=r"stage: 1, shape: \(6,\)\)"):
        pipe_of(stages, dg.DDG()).step(*batch())


def test_a_delayed_stage_may_not_keep_a_second_reference_to_its_own_parameter() -> None:
    first = nn.Linear(6, 6)
    weights = [first.weight]
    stage = nn.Sequential(nn.Embedding(5, 6), first, Call(lambda x: x @ weights[0]))
    with pytest.raises(dg.StageError, match=r"past its place.*parameter: 1\.weight"):
        pipe_of([stage, nn.Linear(6, 5)], dg.DDG()).step(*batch())


def test_a_route_taken_later_is_found_at_the_next_look() -> None:
    scale = torch.ones(6, requires_grad=True)
    calls: list[int] = []

    def later(x: Tensor) -> Tensor:
        calls.append(1)
        return x * scale if len(calls) > 4 else x

    stages = [nn.Embedding(5, 6), nn.Sequential(Call(later), nn.Linear(6, 5))]
    pipe = pipe_of(stages, dg.DDG())
    for _ in range(7):
        pipe.step(*batch())
    with pytest.raises(dg.StageError, match="from outside"):
        pipe.step(*batch())


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return out


def teacher_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize(
    "middle",
    [
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
        Checkpointed(nn.Linear(6, 6), reentrant=False),
        Checkpointed(nn.Linear(6, 6), reentrant=True),
        Call(lambda x: x * torch.ones(6)),
        nn.Linear(6, 6).requires_grad_(False),
    ],
    ids=["parametrised", "checkpoint", "reentrant", "constant", "frozen"],
)
def test_what_a_stage_may_use_passes(middle: nn.Module, method: dg.Method) -> None:
    below, above = nn.Sequential(nn.Embedding(5, 6), middle), nn.Sequential(middle, nn.Linear(6, 5))
    for stages in ([below, nn.Linear(6, 5)], [nn.Embedding(5, 6), above]):
        with pipe_of(stages, method) as pipe:
            for _ in range(3):
                pipe.step(*batch())


def test_targets_with_a_graph_pass() -> None:
    teacher = nn.Linear(6, 5)
    stages = [nn.Embedding(5, 6), nn.Linear(6, 5)]
    pipe = pipe_of(stages, dg.DDG(), teacher_loss)
    pipe.step(batch()[0], teacher(torch.randn(4, 6)))
    pipe.step(batch()[0], torch.randn(4, 5, requires_grad=True))
