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
        (
            lambda own: lambda params: [sgd(params), 1],
            "must return an optimizer (stage: 0, returned",
        ),
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


def shard(rank: int, world_size: int) -> list[str]:
    mesh = init_device_mesh("cpu", (1, world_size), mesh_dim_names=("pp", "dp"))
    module = nn.Linear(6, CLASSES)
    fully_shard(module, mesh=mesh["dp"])
    told = []
    for make in (
        lambda: pipeline([module, nn.Linear(CLASSES, CLASSES)]),
        lambda: dg.DistributedPipeline(module, cross_entropy, sgd),  # no delay
        lambda: dg.DistributedPipeline(module, cross_entropy, sgd, mesh=mesh),
    ):
        with pytest.raises(StageError) as caught:
            make()
        told.append(str(caught.value))
    return told


def test_a_fully_sharded_stage_is_refused_by_name() -> None:
    for told in run_ranks(shard, 1)[0]:
        assert re.search(r"fully sharded \(stage: 0, parameter: weight\); leave out fully_", told)


# --- the method, the optimizers, the memory of parameters ----------------------------------------


@pytest.mark.parametrize("method", ["ddg", dg.DDG])
def test_what_is_no_method_is_told_to_be_called(method: Any) -> None:
    told = r"method is no Method \(given: ('ddg'|DDG)\); call.*method=delaygrad.DDG\(\)"
    with pytest.raises(TypeError, match=told):
        dg.LocalPipeline(stages(), cross_entropy, sgd, method=method)
    with pytest.raises(TypeError, match=told):
        dg.plan(nn.Sequential(*stages()), torch.ones(4, 6), method=method)


def test_one_stage_has_an_optimizer_and_several_have_optimizers() -> None:
    with pytest.raises(AttributeError, match=r"stages in this process: 2\); use pipe.optimizers"):
        _ = pipeline(stages()).optimizer
    alone = pipeline(stages(1))
    assert alone.optimizers == [alone.optimizer]


class Aliased(nn.Module):
    """A second tensor in the memory of the first."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.other: Tensor
        if kind == "buffer":
            self.register_buffer("other", self.weight.data)
        elif kind == "copy":
            self.other = nn.Parameter(self.weight.detach().clone(), requires_grad=False)
        elif kind == "halves":
            flat = torch.randn(12, 6)
            self.weight, self.other = nn.Parameter(flat[:6]), nn.Parameter(flat[6:])
        elif kind == "one":
            self.other = self.weight
        else:
            part = self.weight.data if kind == "frozen" else self.weight.data[2:4]
            self.other = nn.Parameter(part, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("kind", ["frozen", "part", "buffer"])
def test_a_parameter_in_the_memory_of_another_tensor_is_refused_where_updates_untie_it(
    kind: str,
) -> None:
    with pytest.raises(StageError, match="share memory .stage: 0, names: weight, other.*clone"):
        pipeline([Aliased(kind), *stages(1)])
    pipeline([*stages(), Aliased(kind)])  # without delay the memory stays


@pytest.mark.parametrize("kind", ["copy", "halves", "one"])
def test_parameters_that_are_one_or_apart_pass(kind: str) -> None:
    pipeline([Aliased(kind), *stages(1)])


def test_such_parameters_are_not_taken_for_one_when_a_network_is_cut() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6, bias=False) for _ in range(3)])
            alias = nn.Parameter(self.layers[0].weight.data, requires_grad=False)
            self.layers[2].weight = alias

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    with pytest.raises(dg.PartitionError, match="parameter shared between stages .'layers.0.wei"):
        dg.split(Net(), 2, sample_inputs=torch.ones(4, 6), cuts=["layers.1"])


def test_too_many_stages_are_told_how_to_open_a_block() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    told = r"more stages than blocks \(stages: 3, blocks: 2\).*to 2.*\(blocks: first, last\)"
    with pytest.raises(dg.PartitionError, match=told):
        dg.split(Net(), 3, sample_inputs=torch.ones(4, 6))
    told = r"more stages than layers .*pass sample_inputs and name modules inside a layer"
    with pytest.raises(dg.PartitionError, match=told):
        dg.split(nn.Sequential(Net()), 3, sample_inputs=torch.ones(4, 6))


# --- a network that fails ------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(7, 6)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        ([nn.Sequential(nn.Flatten(), nn.Linear(5, 6)), *stages(1)], r"0F0\] layer 1 \(Linear\)"),
        ([nn.Linear(5, 6), *stages(1)], r"0F0\] layer Linear"),
        ([nn.Linear(6, 6), nn.Sequential(Residual(), *stages(1))], r"1F0\] layer 0.blocks.1 \(Lin"),
    ],
    ids=["in a Sequential", "the stage itself", "in a block"],
)
def test_a_batch_of_a_wrong_shape_is_told_with_stage_and_layer(
    modules: list[nn.Module], told: str
) -> None:
    pipe = pipeline(modules)
    with pytest.raises(dg.WorkerError, match=told + r".*: RuntimeError: .* cannot be multiplied"):
        pipe.step(*next(batches(1, (6,))))
    with pytest.raises(dg.WorkerError, match="load its last state"):
        pipe.step(*next(batches(1, (6,))))


def test_an_error_of_the_loss_names_no_layer() -> None:
    with pytest.raises(dg.WorkerError, match=r"action 1F0\] ValueError: Expected input batch_size"):
        pipeline(stages()).step(torch.ones(4, 6), torch.zeros(3, dtype=torch.long))
