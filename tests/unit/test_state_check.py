"""A saved state that an optimizer or a stage would not wholly take up is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delaygrad import DDG, LocalPipeline
from delaygrad.errors import CheckpointError
from delaygrad.state_check import check_optimizer

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params),
    "amsgrad": lambda params: torch.optim.AdamW(params, amsgrad=True),
    "adafactor": lambda params: torch.optim.Adafactor(params),
    "rmsprop": lambda params: torch.optim.RMSprop(params, momentum=0.5, centered=True),
    "rprop": lambda params: torch.optim.Rprop(params),
    "nadam": lambda params: torch.optim.NAdam(params),
    "asgd": lambda params: torch.optim.ASGD(params),
    "adagrad": lambda params: torch.optim.Adagrad(params),
    "lbfgs": lambda params: torch.optim.LBFGS(params),
}


class Dated(torch.optim.SGD):
    """Keeps more than a parameter's state at hand, and adds to that state only now and then."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, lr=0.1, momentum=0.9)
        self.steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.steps += 1
        if self.steps % 2 == 0:
            for state in self.state.values():
                state["slow"] = torch.zeros(3)


def trained(make: Make, steps: int = 2) -> torch.optim.Optimizer:
    params = [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))]
    optimizer = make(params)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = sum(p.square().sum() for p in params)
        assert isinstance(value, Tensor)
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(loss)
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_own_state_is_taken_and_nothing_moves(name: str) -> None:
    for steps in (0, 1, 2):
        state = trained(OPTIMIZERS[name], steps).state_dict()
        fresh = trained(OPTIMIZERS[name], 0)
        before, own = torch.get_rng_state(), str(fresh.state_dict())
        check_optimizer(state, fresh, "stage: 0")
        assert str(fresh.state_dict()) == own and torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(p, torch.ones_like(p)) for p in fresh.param_groups[0]["params"])


def test_optimizers_of_users_are_taken() -> None:
    for steps in (0, 1, 2, 3):
        check_optimizer(trained(Dated, steps).state_dict(), trained(Dated, 0), "stage: 0")


def test_options_that_a_scheduler_adds_are_taken() -> None:
    optimizer = trained(OPTIMIZERS["momentum"])
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    check_optimizer(optimizer.state_dict(), trained(OPTIMIZERS["momentum"], 0), "stage: 0")


@pytest.mark.parametrize(
    ("name", "key"),
    [("momentum", "momentum_buffer"), ("adam", "exp_avg"), ("adam", "step"), ("rprop", "prev")],
)
@pytest.mark.parametrize("kind", ["renamed", "gone", "reshaped"])
def test_other_state_is_named(name: str, key: str, kind: str) -> None:
    optimizer = trained(OPTIMIZERS[name])
    state = optimizer.state_dict()
    value = state["state"][1].pop(key)
    if kind == "renamed":
        state["state"][1][f"{key}2"] = value
    elif kind == "reshaped":
        state["state"][1][key] = value.new_zeros((*value.shape, 1))
    with pytest.raises(CheckpointError, match=rf"stage: 5, parameter 1, {key} there"):
        check_optimizer(state, trained(OPTIMIZERS[name], 0), "stage: 5")


def test_a_missing_option_and_an_unknown_parameter_are_named() -> None:
    state = trained(OPTIMIZERS["momentum"]).state_dict()
    other = copy.deepcopy(state)
    del other["param_groups"][0]["nesterov"]
    with pytest.raises(CheckpointError, match=r"lacks options .*'nesterov'"):
        check_optimizer(other, trained(OPTIMIZERS["momentum"], 0), "stage: 0")
    state["state"][7] = state["state"].pop(1)
    with pytest.raises(CheckpointError, match=r"does not have .*'7'"):
        check_optimizer(state, trained(OPTIMIZERS["momentum"], 0), "stage: 0")


@pytest.mark.parametrize("name", ["model", "optimizer", "weights", "random", "accumulated"])
@pytest.mark.parametrize("value", [None, [], "absent"])
def test_a_state_of_another_form_is_one_error(name: str, value: Any) -> None:
    def make() -> LocalPipeline:
        torch.manual_seed(0)
        stages = [nn.Linear(4, 4), nn.Linear(4, 2)]
        return LocalPipeline(
            stages, nn.functional.cross_entropy, OPTIMIZERS["momentum"], method=DDG()
        )

    pipeline = make()
    for _ in range(3):
        pipeline.step(torch.ones(2, 4), torch.tensor([0, 1]))
    state = pipeline.state_dict()
    if value == "absent":
        del state["stages"]["0"][name]
    else:
        state["stages"]["0"][name] = value
    other = make()
    with pytest.raises(CheckpointError, match="stage: 0"):
        other.load_state_dict(state)
