"""Between two steps ``.grad`` is the user's: clearing it does not touch what is summed up."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from networks import OPTIMIZERS, batches, into_stages, mlp
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg

SIZES = (9, 9, 8)


def clear(pipe: dg.LocalPipeline | dg.DistributedPipeline, set_to_none: bool = True) -> None:
    for optimizer in pipe.optimizers:
        assert optimizer is not None
        optimizer.zero_grad(set_to_none=set_to_none)


def pipeline(stages: list[nn.Module], **options: Any) -> dg.LocalPipeline:
    torch.manual_seed(0)
    method = dg.DDG(**options)
    return dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["nesterov"], method=method)


def gradients(stages: list[nn.Module]) -> list[list[Tensor | None]]:
    return [[parameter.grad for parameter in stage.parameters()] for stage in stages]


@pytest.mark.parametrize("set_to_none", [True, False], ids=["None", "zeros"])
@pytest.mark.parametrize(("num_stages", "micro_batches", "slack"), [(3, 2, 0), (4, 3, 1)])
def test_zero_grad_before_each_step_changes_nothing(
    num_stages: int, micro_batches: int, slack: int, set_to_none: bool
) -> None:
    stages = into_stages(mlp(), num_stages)
    rule = {"micro_batches": micro_batches, "slack": slack}
    naive = NaiveDelayedGradients(stages, cross_entropy, OPTIMIZERS["nesterov"], **rule)
    pipe = pipeline(stages, **rule)
    for batch in batches(9, (6,), sizes=SIZES):
        clear(pipe, set_to_none)
        assert_same(pipe.step(*batch), naive.step(*batch))
        assert_same(gradients(stages), naive.gradients())  # what was applied; None in the fill
        assert_same([s.state_dict() for s in stages], [s.state_dict() for s in naive.stages])
    clear(pipe, set_to_none)
    naive.flush()
    pipe.flush()
    assert_same([s.state_dict() for s in stages], [s.state_dict() for s in naive.stages])


def test_a_state_holds_partial_sums_though_the_user_has_cleared_gradients() -> None:
    straight = pipeline(into_stages(mlp(), 3), micro_batches=2)
    data = list(batches(7, (6,), sizes=SIZES))
    for batch in data[:4]:
        straight.step(*batch)
    clear(straight)
    saved = copy.deepcopy(straight.state_dict())
    assert saved["stages"]["1"]["accumulated"]["gradients"]
    resumed = pipeline(into_stages(mlp(), 3), micro_batches=2)
    resumed.load_state_dict(saved)
    for batch in data[4:]:
        clear(resumed)
        assert_same(resumed.step(*batch), straight.step(*batch))
    for ours, theirs in zip(resumed.stages, straight.stages, strict=True):
        assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))


def train_clearing(rank: int, world_size: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    stages = into_stages(mlp(), world_size)
    torch.manual_seed(0)
    with dg.DistributedPipeline(
        stages[rank], cross_entropy, OPTIMIZERS["nesterov"], method=dg.DDG(micro_batches=2)
    ) as pipe:
        for batch in batches(7, (6,), sizes=SIZES):
            clear(pipe)
            pipe.step(*batch)
        pipe.flush()
    return dict(stages[rank].state_dict())


def test_ranks_may_clear_gradients_too() -> None:
    torch.manual_seed(0)
    stages = into_stages(mlp(), 3)
    pipe = pipeline(stages, micro_batches=2)
    for batch in batches(7, (6,), sizes=SIZES):
        pipe.step(*batch)
    pipe.flush()
    assert_same(run_ranks(train_clearing, 3), [dict(stage.state_dict()) for stage in stages])
