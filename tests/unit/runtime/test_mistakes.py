"""Mistakes that are easily made when a pipeline is set up: each has one clear answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import assert_same
from networks import CLASSES, batches
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.errors import StageError


def stages(num_stages: int = 2) -> list[nn.Module]:
    return [*(nn.Linear(6, 6) for _ in range(num_stages - 1)), nn.Linear(6, CLASSES)]


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def pipeline(modules: list[nn.Module], make_optimizer: Any = sgd) -> dg.LocalPipeline:
    return dg.LocalPipeline(modules, cross_entropy, make_optimizer)


# --- two pipelines -------------------------------------------------------------------------------


def test_a_second_pipeline_on_the_same_stages_is_refused_until_the_first_is_closed() -> None:
    modules = stages()
    first = pipeline(modules)
    for batch in batches(2, (6,)):
        first.step(*batch)
    for second in (modules, [nn.Sequential(*modules)]):
        with pytest.raises(StageError, match="belong to another pipeline.*close"):
            pipeline(second)
    first.close()
    pipeline(modules).step(*next(batches(1, (6,))))


def test_a_pipeline_that_is_gone_or_has_failed_gives_its_stages_back() -> None:
    modules = stages()
    for _ in range(2):
        pipeline(modules).step(*next(batches(1, (6,))))
    failing = pipeline(modules)
    with pytest.raises(dg.DelaygradError):
        failing.step(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))
    pipeline(modules)


def test_frozen_stages_may_be_in_two_pipelines() -> None:
    backbone = nn.Linear(6, 6).requires_grad_(False)
    pipes = [pipeline([backbone, nn.Linear(6, CLASSES)]) for _ in range(2)]
    for pipe in pipes:
        pipe.step(*next(batches(1, (6,))))


def second_on_a_rank(rank: int, world_size: int) -> str:
    module = stages(world_size)[rank]
    first = dg.DistributedPipeline(module, cross_entropy, sgd)
    with pytest.raises(StageError, match="belong to another pipeline") as caught:
        dg.DistributedPipeline(module, cross_entropy, sgd)
    first.close()
    dg.DistributedPipeline(module, cross_entropy, sgd).close()
    return str(caught.value)


def test_ranks_refuse_a_second_pipeline_too() -> None:
    assert len(run_ranks(second_on_a_rank, 2)) == 2


# --- optimizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda own: sgd(own), "make_optimizer is no function (given: a SGD)"),
        (lambda own: [sgd(own)], "make_optimizer is no function (given: a list)"),
        (lambda own: lambda params: [sgd(params)], "must return an optimizer (stage: 0, returned"),
        (lambda own: lambda params: None, "must return an optimizer (stage: 0, returned"),
    ],
)
def test_an_optimizer_in_place_of_a_factory_is_refused(
    make: Callable[[list[nn.Parameter]], Any], told: str
) -> None:
    modules = stages()
    own = [parameter for module in modules for parameter in module.parameters()]
    with pytest.raises(StageError, match=re.escape(told) + ".*lambda params: "):
        pipeline(modules, make(own))


# --- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [nn.Linear(6, 6), nn.Flatten()], ids=["Linear", "Flatten"])
def test_a_batch_of_a_loader_in_place_of_its_inputs_is_told_apart(first: nn.Module) -> None:
    inputs, targets = next(batches(1, (6,)))
    for call in (lambda p: p.step([inputs, targets], targets), lambda p: p.predict([inputs])):
        pipe = pipeline([first, nn.Linear(6, CLASSES)])
        with pytest.raises(StageError, match=r"does not take a list of .*step\(\*batch\)"):
            call(pipe)
        pipe.close()


def test_a_list_of_inputs_is_right_where_the_network_takes_one() -> None:
    class Sum(nn.Module):
        def forward(self, pair: list[Tensor]) -> Tensor:
            return pair[0] + pair[1]

    inputs, targets = next(batches(1, (6,)))
    head = nn.Linear(6, CLASSES)
    loss = pipeline([Sum(), head]).step([inputs, inputs], targets)
    assert_same(loss, cross_entropy(nn.functional.linear(2 * inputs, *was(head)), targets).detach())


def was(head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Undo the one step of SGD that the pipeline took with the head."""
    return tuple(p.detach() + 0.1 * p.grad for p in head.parameters() if p.grad is not None)


# --- sharded stages ------------------------------------------------------------------------------


def shard(rank: int, world_size: int) -> str:
    module = nn.Linear(6, 6)
    fully_shard(module, mesh=init_device_mesh("cpu", (world_size,)))
    with pytest.raises(StageError) as caught:
        pipeline([module, nn.Linear(6, CLASSES)])
    return str(caught.value)


def test_a_fully_sharded_stage_with_a_delay_is_refused_by_name() -> None:
    (told,) = run_ranks(shard, 1)
    assert re.search(r"fully sharded \(stage: 0, parameter: weight\); leave out fully_shard", told)
