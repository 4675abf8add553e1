"""One test per fixed bug that no other test would have told us of; the cause in a comment."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import nn

import delaygrad as dg
from delaygrad.boundary import flatten, unflatten
from delaygrad.schedule import Schedule


def pipeline(stages: list[nn.Module], **options: object) -> dg.LocalPipeline:
    return dg.LocalPipeline(
        stages, nn.functional.mse_loss, lambda params: torch.optim.SGD(params, lr=0.1), **options
    )


class TiedByMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = nn.Parameter(self.first.weight.data)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs).tanh())


def test_parameters_over_one_memory_stay_tied_on_a_delayed_stage() -> None:
    # Each live parameter moved to a copy of its own before the update.
    module = TiedByMemory()
    pipe = pipeline([module, nn.Linear(3, 1)])
    for _ in range(4):
        pipe.step(torch.randn(5, 3), torch.randn(5, 1))
    assert module.first.weight.data_ptr() == module.second.weight.data_ptr()
    assert torch.equal(module.first.weight, module.second.weight)


def test_stages_that_share_memory_are_refused_by_name() -> None:
    # Only the identity of the parameter objects was compared.
    below, above = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    above.weight = nn.Parameter(below.weight.data)
    with pytest.raises(dg.PartitionError, match=r".weight. in stage 0, .weight. in stage 1"):
        pipeline([below, above])


def test_a_state_is_a_snapshot_that_training_on_does_not_change() -> None:
    # Delayed stages had moved on to other memory, the last stage had not: a roll-back mixed them.
    pipe = pipeline([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)])
    batches = [(torch.randn(5, 3), torch.randn(5, 1)) for _ in range(8)]
    for batch in batches[:4]:
        pipe.step(*batch)
    state = pipe.state_dict()
    first = [pipe.step(*batch) for batch in batches[4:]]
    pipe.load_state_dict(state)
    second = [pipe.step(*batch) for batch in batches[4:]]
    assert [loss.item() for loss in first] == [loss.item() for loss in second]


def test_a_loss_with_parameters_of_its_own_is_refused() -> None:
    # No optimizer got them, and their gradients grew for ever.
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return (self.scale * (outputs - targets) ** 2).mean()

    with pytest.raises(dg.StageError, match="loss_fn has parameters"):
        dg.LocalPipeline([nn.Linear(1, 1)], Scaled(), lambda params: torch.optim.SGD(params, lr=1))


def test_a_state_with_other_parameter_groups_is_refused_before_anything_changes() -> None:
    # The module was overwritten before the optimizer refused, and training went on half-loaded.
    def by_kind(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [{"params": [p]} for p in params]
        return torch.optim.SGD(groups, lr=0.1)

    state = pipeline([nn.Linear(2, 1)]).state_dict()
    module = nn.Linear(2, 1)
    before = module.weight.clone()
    other = dg.LocalPipeline([module], nn.functional.mse_loss, by_kind)
    with pytest.raises(dg.CheckpointError, match="parameter groups"):
        other.load_state_dict(state)
    assert torch.equal(module.weight, before)


def test_a_state_of_another_dtype_is_refused() -> None:
    # It loaded, and failed inside a later backward.
    state = pipeline([nn.Linear(2, 2), nn.Linear(2, 1)]).state_dict()
    with pytest.raises(dg.CheckpointError, match="float32.*float64"):
        pipeline([nn.Linear(2, 2).double(), nn.Linear(2, 1).double()]).load_state_dict(state)


def test_a_timetable_that_cannot_work_is_refused_at_once() -> None:
    # It showed as a wait for a message that nobody would send.
    rushed = Schedule("rushed", lambda k, num_stages: num_stages - 1 - k, lambda k, _: 0)
    with pytest.raises(dg.ScheduleError, match="too early"):
        pipeline(
            [nn.Linear(1, 1), nn.Linear(1, 1)], method=dg.Method(name="rushed", schedule=rushed)
        )


def test_a_parameter_given_to_the_optimizer_later_gets_one_gradient_at_a_time() -> None:
    # Only the parameters of the beginning were cleared; the new one's gradients added up.
    pipe = pipeline([nn.Linear(2, 1)])
    inputs, targets = torch.randn(4, 2), torch.randn(4, 1)
    pipe.step(inputs, targets)
    module = pipe.stages[0]
    module.weight = nn.Parameter(torch.ones(1, 2))
    pipe.optimizers[0].add_param_group({"params": [module.weight]})
    for _ in range(3):
        expected = torch.autograd.grad(
            nn.functional.mse_loss(module(inputs), targets), module.weight
        )[0]
        pipe.step(inputs, targets)
        assert torch.equal(module.weight.grad, expected)


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return grad.clone()


class Slow(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return SlowBackward.apply(super().forward(inputs))


def train_flush_and_leave(rank: int, world_size: int, slack: int) -> float:
    stage = Slow(8, 8) if rank == 0 else nn.Linear(8, 1)
    pipe = dg.DistributedPipeline(
        stage,
        nn.functional.mse_loss,
        lambda params: torch.optim.SGD(params, lr=0.1),
        method=dg.DDG(slack=slack),
        timeout_s=20,
    )
    for _ in range(4):
        pipe.step(torch.ones(5, 8), torch.ones(5, 1))
    pipe.flush()
    return float(stage.weight.detach().sum())


@pytest.mark.parametrize("slack", [0, 2])
def test_a_rank_may_leave_after_its_flush_while_another_still_has_work(slack: int) -> None:
    # The slower rank posted a receive ahead to the one that had left, after its last message, and
    # took the refusal for a message lost.
    run_ranks(train_flush_and_leave, 2, timeout_s=60, args=(slack,))


def test_tensors_that_crossed_a_boundary_are_freed_without_a_garbage_collection() -> None:
    # unflatten called a closure that called itself: a cycle that held the tensors.
    tensors, structure = flatten((torch.zeros(2), [torch.ones(2)]))
    first = weakref.ref(tensors[0])
    gc.disable()
    try:
        tree = unflatten(structure, tensors)
        del tensors, tree
        assert first() is None
    finally:
        gc.enable()
