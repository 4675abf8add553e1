"""Networks as users bring them: cut by one call, equal to the model, trained exactly.

Each network is captured once; every test works on a copy of the model and its stages.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from ranks import run_ranks
from torch import Tensor, nn
from zoo import TIED, ZOO, Specimen, specimen

import delaygrad as dg
from delaygrad.partition import cuts_of, measured_cuts, measurement
from delaygrad.partition import split as split_function
from delaygrad.partition.check import checked_stages
from delaygrad.partition.graph.capture import call_model
from delaygrad.partition.graph.network import Network
from delaygrad.partition.merge import mark_stage

split_module = sys.modules[split_function.__module__]

NAMES = list(ZOO)


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


@dataclass(frozen=True)
class Cut:
    """A network that `split` has cut in two, and what it captured."""

    one: Specimen
    network: Network
    stages: list[nn.Module]


@cache
def cut_in_two(name: str) -> Cut:
    one, made = specimen(name), []

    class Kept(Network):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    model = one.build()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_module, "Network", Kept)
        patch.setattr(measured_cuts, "BUDGET_S", 0.0)
        for name_of_budget in ("LAYERS_BUDGET_S", "STAGES_BUDGET_S"):
            patch.setattr(measurement, name_of_budget, 0.0)
        stages = dg.split(model, 2, sample_inputs=one.batch(*one.sizes))
    return Cut(one, made[0], stages)


@cache
def cut(name: str, num_stages: int) -> tuple[nn.Module, list[nn.Module]]:
    """The model and its stages, which share its modules."""
    found = cut_in_two(name)
    if num_stages == 2:
        return found.network.model, found.stages
    count = len(found.network.names)
    starts = [count * k // num_stages for k in range(1, num_stages)]
    stages = checked_stages(found.network, starts)
    for k, stage in enumerate(stages):
        mark_stage(stage, k, num_stages)
    return found.network.model, stages


def fresh(name: str, num_stages: int) -> tuple[Specimen, nn.Module, list[nn.Module]]:
    """A copy of both, for a test to train."""
    model, stages = copy.deepcopy(cut(name, num_stages))
    return specimen(name), model, stages


def without_dropout(model: nn.Module) -> None:
    """So that one random stream and one for each stage compute the same."""
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, float) and ("drop" in key or isinstance(module, nn.Dropout)):
                setattr(module, key, 0.0)


def leaves(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def named_state(modules: list[nn.Module]) -> dict[str, Tensor]:
    found = {key: value for module in modules for key, value in module.state_dict().items()}
    return {key: found[key] for key in sorted(found)}


def every_network(turn: int, names: Iterable[str] = NAMES) -> pytest.MarkDecorator:
    """Each network at one depth, that of a test of the other turn behind ``full``.

    One worker runs all tests of a network: it captures the network once.
    """
    cases = []
    for index, name in enumerate(names):
        for num_stages in (2, 3):
            own_turn = (index + num_stages) % 2 == turn
            group = pytest.mark.xdist_group(name.removeprefix("plain "))
            marks = [group] if own_turn else [group, pytest.mark.full]
            cases.append(pytest.param(name, num_stages, marks=marks))
    return pytest.mark.parametrize(("name", "num_stages"), cases)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in NAMES])
def test_split_alone_cuts_and_keeps_the_users_modules_and_names(name: str) -> None:
    model, stages = cut(name, 2)
    assert len(stages) == 2 and all(list(stage.children()) for stage in stages)
    theirs = {id(parameter): key for key, parameter in model.named_parameters()}
    ours = {id(p): key for stage in stages for key, p in stage.named_parameters()}
    assert ours == theirs
    held = {id(module) for stage in stages for module in stage.modules()}
    assert held > {id(model.get_submodule(name.split(" (")[0])) for name in cuts_of(stages)}


@every_network(0)
def test_stages_are_the_model_in_both_modes_and_at_another_size(name: str, num_stages: int) -> None:
    one, model, stages = fresh(name, num_stages)
    torch.manual_seed(3)
    assert dg.check(stages, model, one.batch(*one.other)) == 0.0
    assert dg.check(stages, model, one.batch(*one.sizes)) == 0.0


@every_network(1)
def test_ddg_is_the_naive_loop(name: str, num_stages: int) -> None:
    one, _, stages = fresh(name, num_stages)
    torch.manual_seed(0)
    naive = NaiveDelayedGradients(stages, one.loss, sgd)
    pipe = dg.LocalPipeline(stages, one.loss, sgd, method=dg.DDG())
    for inputs, targets in one.batches(5):
        assert_same(pipe.step(inputs, targets), naive.step(inputs, targets), "loss")
    pipe.flush()
    naive.flush()
    assert_same(named_state(pipe.stages), named_state(naive.stages), "state")


@every_network(0, [name.replace("mobilenet", "plain mobilenet") for name in NAMES])
def test_backpropagation_through_stages_is_the_models_own(name: str, num_stages: int) -> None:
    one, _, stages = fresh(name, num_stages)
    model = copy.deepcopy(cut_in_two(name).network.model)
    for module in (model, *stages):
        without_dropout(module)
    optimizer = sgd(list(model.parameters()))
    pipe = dg.LocalPipeline(stages, one.loss, sgd, method=dg.BP())
    for inputs, targets in one.batches(4):
        loss = one.loss(call_model(model, inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert_same(pipe.step(inputs, targets), loss.detach(), "loss")
    assert_same(named_state([dg.merge(pipe.stages)]), named_state([model]), "state")


class WholeModelLoop:
    """Delayed gradients of a whole model, which has never been cut.

    The parameters of stage k are those that the stages name; a parameter that several blocks use
    belongs to the one stage that names it. Whole-model backpropagation at w@s gives all gradients
    of batch s; those of stage k are applied at iteration s + K-1-k.
    """

    def __init__(self, model: nn.Module, stages: list[nn.Module], loss: Any) -> None:
        self.model, self.loss = model, loss
        named = dict(model.named_parameters())
        self.names = [[key for key, _ in stage.named_parameters()] for stage in stages]
        assert sorted(sum(self.names, [])) == sorted(named)
        self.optimizers = [sgd([named[key] for key in keys]) for keys in self.names]
        self.gradients: list[dict[str, Tensor | None]] = []

    def step(self, inputs: Any, targets: Tensor) -> Tensor:
        self.model.zero_grad()
        loss = self.loss(call_model(self.model, inputs), targets)
        loss.backward()
        found = {key: parameter.grad for key, parameter in self.model.named_parameters()}
        self.gradients.append(found)
        self.apply(len(self.gradients) - 1)
        return loss.detach()

    def flush(self) -> None:
        for t in range(len(self.gradients), len(self.gradients) + len(self.names) - 1):
            self.apply(t)

    def apply(self, t: int) -> None:
        self.model.zero_grad()
        for k, keys in enumerate(self.names):
            s = t - (len(self.names) - 1 - k)
            if 0 <= s < len(self.gradients):
                for key in keys:
                    self.model.get_parameter(key).grad = self.gradients[s][key]
                self.optimizers[k].step()


@every_network(1, (*TIED, "bert", "unet"))
def test_ddg_is_a_loop_over_the_whole_model(name: str, num_stages: int) -> None:
    one, model, stages = fresh(name, num_stages)
    for module in (model, *stages):
        without_dropout(module)
    whole = WholeModelLoop(copy.deepcopy(model), stages, one.loss)
    pipe = dg.LocalPipeline(stages, one.loss, sgd, method=dg.DDG())
    for inputs, targets in one.batches(6):
        assert_same(pipe.step(inputs, targets), whole.step(inputs, targets), "loss")
    pipe.flush()
    whole.flush()
    assert_same(named_state([dg.merge(pipe.stages)]), named_state([whole.model]), "state")


@every_network(0)
def test_predict_is_the_model_in_evaluation_and_changes_nothing(name: str, num_stages: int) -> None:
    one, model, stages = fresh(name, num_stages)
    pipe = dg.LocalPipeline(stages, one.loss, sgd, method=dg.DDG())
    (inputs, targets), _ = one.batches(2)
    pipe.step(inputs, targets)
    before = copy.deepcopy(named_state(pipe.stages))
    predicted = pipe.predict(inputs)
    assert_same(named_state(pipe.stages), before, "state")
    model.load_state_dict(dg.merge(pipe.stages).state_dict())
    with torch.no_grad():
        expected = call_model(model.eval(), inputs)
    assert type(predicted) is type(expected)
    assert_same(leaves(predicted), leaves(expected), "predictions")


@every_network(1)
def test_merged_stages_load_into_the_models_class(name: str, num_stages: int) -> None:
    one, model, stages = fresh(name, num_stages)
    state = dg.merge(stages).state_dict()
    assert list(state) == list(model.state_dict())
    one.build().load_state_dict(state, strict=True)
    assert dg.check([dg.merge(stages)], model, one.batch(*one.sizes)) == 0.0


def _train(pipe: Any, one: Specimen) -> dict[str, Any]:
    losses = [pipe.step(inputs, targets) for inputs, targets in one.batches(4)]
    pipe.flush()
    predicted = pipe.predict(one.batches(1)[0][0])
    states = [dict(module.state_dict()) for module in pipe.modules]
    return {"losses": losses, "predicted": predicted, "states": states, "cuts": pipe.cuts}


def _on_a_rank(rank: int, world_size: int, name: str, cuts: list[str] | None) -> dict[str, Any]:
    one = ZOO[name]
    sample = one.build() and one.batch(*one.sizes)
    pipe = dg.DistributedPipeline.from_model(
        one.build(), one.loss, sgd, sample_inputs=sample, cuts=cuts, timeout_s=60
    )
    torch.manual_seed(0)
    with pipe:
        return _train(pipe, one)


@pytest.mark.parametrize(
    ("name", "num_stages", "cuts"),
    [
        ("unet", 2, None),
        ("mobilenet", 2, ["block2"]),
        *(
            pytest.param(name, num_stages, None, marks=pytest.mark.full)
            for name in NAMES
            for num_stages in (2, 3)
            if (name, num_stages) != ("unet", 2)
        ),
    ],
)
def test_ranks_cut_alike_by_one_call_and_compute_what_one_process_does(
    name: str, num_stages: int, cuts: list[str] | None
) -> None:
    told = run_ranks(_on_a_rank, num_stages, args=(name, cuts), timeout_s=110)
    one = ZOO[name]
    found = told[0]["cuts"]
    assert cuts in (None, found)
    assert all(of_rank["cuts"] == found for of_rank in told)
    sample = one.build() and one.batch(*one.sizes)
    stages = dg.split(one.build(), num_stages, sample_inputs=sample, cuts=found)
    pipe = dg.LocalPipeline(stages, one.loss, sgd, method=dg.DDG())
    local = _train(pipe, one)
    assert local["cuts"] == found
    assert_same(told[-1]["losses"], local["losses"], "losses")
    assert_same(told[-1]["predicted"], local["predicted"], "predictions")
    assert_same([of_rank["states"][0] for of_rank in told], local["states"], "states")
