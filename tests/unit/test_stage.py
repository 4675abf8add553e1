"""One stage by itself, told what to do action by action."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exact import assert_same
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import delaygrad as dg
from delaygrad.errors import CheckpointError, StageError, StashError
from delaygrad.methods import BP, DDG
from delaygrad.stage import Stage


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def make_stage(index: int, num_stages: int = 3, module: nn.Module | None = None) -> Stage:
    module = nn.Linear(2, 2) if module is None else module
    return Stage(
        module, sgd, stage_index=index, num_stages=num_stages, method=DDG(), loss_fn=mse_loss
    )


def activation(size: int = 3) -> Tensor:
    return torch.randn(size, 2).requires_grad_()


def test_a_delayed_backward_uses_the_parameters_of_its_own_forward() -> None:
    stage = make_stage(0)
    x = torch.randn(3, 2)
    weights = stage.module.weight.detach().clone()
    out = stage.forward(0, x)
    assert_same(out.detach(), x @ weights.T + stage.module.bias.detach())
    for batch in (1, 2):
        stage.forward(batch, torch.randn(3, 2))
        for parameter in stage.module.parameters():
            parameter.grad = torch.ones_like(parameter)
        stage.update()
    assert not torch.equal(stage.module.weight, weights)
    grad = torch.randn(3, 2)
    assert stage.backward(0, [grad]) == [None]  # nothing below the first stage
    torch.testing.assert_close(stage.module.weight.grad, grad.T @ x)


@pytest.mark.parametrize("index", [0, 2])
def test_a_backward_adds_to_the_one_before_until_an_update(index: int) -> None:
    stage = make_stage(index)
    x, y, targets = activation(), activation(), torch.randn(3, 2)
    error = None if stage.is_last else [torch.ones(3, 2)]
    singles = []
    for alone in (x, y):
        stage.forward(0, alone, targets)
        stage.backward(0, error)
        singles.append(stage.module.weight.grad.clone())
        stage.partial.count = 0  # as if there had been an update, without the update

    for batch, inputs in enumerate((x, y, x)):
        stage.forward(batch, inputs, targets)
    stage.backward(0, error)
    stage.backward(1, error)
    torch.testing.assert_close(stage.module.weight.grad, singles[0] + singles[1])
    stage.partial.count = 0
    stage.backward(2, error)
    assert_same(stage.module.weight.grad, singles[0])


def test_the_error_gradient_is_that_of_the_old_parameters() -> None:
    stage = make_stage(1)
    weights = stage.module.weight.detach().clone()
    stage.forward(0, activation())
    for parameter in stage.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    stage.update()
    grad = torch.randn(3, 2)
    (sent,) = stage.backward(0, [grad])
    assert_same(sent, grad @ weights)


def test_the_last_stage_returns_a_detached_loss_and_needs_no_gradient() -> None:
    stage = make_stage(2)
    x, targets = activation(), torch.randn(3, 2)
    loss = stage.forward(0, x, targets)
    assert_same(loss, mse_loss(stage.module(x), targets).detach())
    (sent,) = stage.backward(0)
    expected = torch.autograd.grad(mse_loss(stage.module(x), targets), x)[0]
    assert_same(sent, expected)


def test_outputs_want_a_gradient_only_where_one_is_possible() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x * 2, x.detach(), x.argmax(1)

    stage = make_stage(1, module=Mixed())
    outputs = stage.forward(0, activation())
    assert [t.requires_grad for t in outputs] == [True, False, False]
    assert all(t.grad_fn is None for t in outputs)
    (sent,) = stage.backward(0, [torch.ones(3, 2), None, None])
    assert_same(sent, torch.full((3, 2), 2.0))


def test_no_gradient_arises_from_none() -> None:
    stage = make_stage(1)
    stage.forward(0, activation())
    assert stage.backward(0, [None]) == [None]
    assert stage.module.weight.grad is None


def test_inputs_that_want_no_gradient_get_none() -> None:
    stage = make_stage(1)
    stage.forward(0, torch.randn(3, 2))
    assert stage.backward(0, [torch.ones(3, 2)]) == [None]
    assert stage.module.weight.grad is not None


def test_a_backward_without_its_forward_is_refused() -> None:
    stage = make_stage(0)
    stage.forward(3, torch.randn(1, 2))
    with pytest.raises(StashError, match=r"\(batch: 2, stashed: \[3\]\)"):
        stage.backward(2, [torch.ones(1, 2)])


def test_a_batch_cannot_go_forward_twice() -> None:
    stage = make_stage(0)
    stage.forward(3, torch.randn(1, 2))
    with pytest.raises(StashError, match=r"already \(3\)"):
        stage.forward(3, torch.randn(1, 2))


def test_the_last_stage_needs_a_loss() -> None:
    with pytest.raises(StageError, match=r"needs a loss_fn \(stage: 1\)"):
        Stage(nn.Linear(2, 2), sgd, stage_index=1, num_stages=2, method=DDG())


def test_no_optimizer_is_made_for_a_stage_without_parameters() -> None:
    def refuse(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        raise AssertionError("called")

    stage = Stage(nn.Tanh(), refuse, stage_index=0, num_stages=2, method=DDG())
    stage.forward(0, torch.ones(1, 2))
    stage.backward(0, [None])
    stage.update()
    assert stage.optimizer is None and stage.version == 1


def test_a_stage_that_hands_on_something_else_is_told() -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, "text"

    with pytest.raises(StageError, match="cannot hand on a value of type str"):
        make_stage(0, module=Text()).forward(0, torch.ones(1, 2))


def test_a_state_in_the_middle_of_an_iteration_is_refused() -> None:
    stage = Stage(nn.Linear(2, 2), sgd, stage_index=0, num_stages=2, method=BP(), loss_fn=mse_loss)
    stage.forward(4, torch.ones(1, 2))
    with pytest.raises(CheckpointError, match="batch 4 is between its forward and its backward"):
        stage.state_dict()


def run(stage: Stage, num_batches: int) -> None:
    for batch in range(num_batches):
        stage.forward(batch, activation(), torch.ones(3, 2))
        if batch >= stage.delay:
            stage.backward(batch - stage.delay, None if stage.is_last else [torch.ones(3, 2)])
            stage.update()


def test_one_copy_of_the_parameters_is_held_for_each_waiting_batch() -> None:
    stage = make_stage(0, num_stages=4)
    run(stage, 12)
    state = stage.state_dict()
    assert [entry["batch"] for entry in state["pending"]] == [9, 10, 11]
    held = [values["weight"].data_ptr() for values in state["weights"].values()]
    assert len({*held, stage.module.weight.data_ptr()}) == 3 + 1


def test_a_stage_without_delay_holds_no_copy_and_never_moves() -> None:
    stage = make_stage(3, num_stages=4)
    address = stage.module.weight.data_ptr()
    run(stage, 5)
    assert stage.module.weight.data_ptr() == address
    assert stage.state_dict()["weights"] == {}


def test_predict_leaves_modes_gradients_and_random_numbers_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    module[2].eval()
    stage = make_stage(1, module=module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = stage.state_dict()["random"]["cpu"].clone()
    outputs = stage.evaluation.predict(torch.randn(5, 2)[:, [1, 0]].T.contiguous().T)
    assert not outputs.requires_grad
    assert [part.training for part in module] == [True, True, False]
    assert_same(dict(module.state_dict()), before)
    assert_same(stage.state_dict()["random"]["cpu"], state)


def test_a_delayed_first_stage_keeps_its_own_copy_of_the_input() -> None:
    stage = make_stage(0)
    x = torch.randn(3, 2)
    kept = x.clone()
    stage.forward(0, x)
    x.zero_()
    grad = torch.ones(3, 2)
    stage.backward(0, [grad])
    torch.testing.assert_close(stage.module.weight.grad, grad.T @ kept)


def test_a_network_in_bfloat16_is_told_that_its_boundaries_are_small_already() -> None:
    stages = [nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).bfloat16()]
    pipe = dg.LocalPipeline(
        stages,
        lambda outputs, _: outputs.mean(),
        lambda params: torch.optim.SGD(params, lr=0.1),
        method=dg.DDG(boundary_dtype=torch.bfloat16),
    )
    with pytest.raises(dg.StageError, match="hands on torch.bfloat16 already; .*leave it out"):
        pipe.step(torch.ones(2, 2, dtype=torch.bfloat16), None)


def test_float64_crosses_boundaries_as_it_is() -> None:
    stages = [nn.Linear(2, 2).double(), nn.Linear(2, 2).double()]
    pipes = [
        dg.LocalPipeline(
            copy.deepcopy(stages),
            lambda outputs, _: outputs.square().mean(),
            lambda params: torch.optim.SGD(params, lr=0.1),
            method=dg.DDG(boundary_dtype=dtype),
        )
        for dtype in (None, torch.bfloat16)
    ]
    x = torch.randn(3, 2, dtype=torch.float64)
    assert_same(*([pipe.step(x, None) for _ in range(4)] for pipe in pipes))
