"""Several optimizers for one stage; stages with nothing to train; modules without parameters yet.

Natural code of a PyTorch user must work: parameters sorted by their dimensions, schedulers,
checkpoints.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from networks import CLASSES, batches, mlp, parameters
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Muon, Optimizer

import delaygrad as dg
from delaygrad.optimizers import joined


def muon_and_adamw(params: list[nn.Parameter]) -> list[Optimizer]:
    matrices = [p for p in params if p.ndim == 2]
    others = [p for p in params if p.ndim != 2]
    return [Muon(matrices, lr=0.02), AdamW(others, lr=0.01)]


def into_stages(num_stages: int, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    blocks = mlp(6)
    size = len(blocks) // num_stages
    return [nn.Sequential(*blocks[k * size : (k + 1) * size]) for k in range(num_stages)]


class Together:
    """Two optimizers stepped by hand."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.parts = muon_and_adamw(params)

    def step(self) -> None:
        for part in self.parts:
            part.step()


@pytest.mark.parametrize("num_stages", [1, 3])
def test_each_part_steps_as_it_would_alone(num_stages: int) -> None:
    stages = into_stages(num_stages)
    make: Any = Together
    naive = NaiveDelayedGradients(stages, cross_entropy, make)
    pipe = dg.LocalPipeline(stages, cross_entropy, muon_and_adamw)
    for x, y in batches(8, (6,)):
        assert_same(pipe.step(x, y), naive.step(x, y))
    pipe.flush()
    naive.flush()
    assert_same(parameters(stages), parameters(naive.stages))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"loss_scale": 4.0}], ids=str)
def test_schedulers_and_checkpoints_take_it_for_one_optimizer(options: dict[str, Any]) -> None:
    def make(seed: int) -> tuple[dg.LocalPipeline, list[Any]]:
        pipe = dg.LocalPipeline(into_stages(3, seed), cross_entropy, muon_and_adamw, **options)
        optimizers = [optimizer for optimizer in pipe.optimizers if optimizer is not None]
        return pipe, [torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5) for o in optimizers]

    def run(pipe: dg.LocalPipeline, schedulers: list[Any], data: Any) -> None:
        for x, y in data:
            pipe.step(x, y)
            for scheduler in schedulers:
                scheduler.step()

    data = list(batches(10, (6,)))
    whole, its = make(0)
    run(whole, its, data[:5])
    state, scheduled = whole.state_dict(), [scheduler.state_dict() for scheduler in its]
    resumed, others = make(7)
    resumed.load_state_dict(state)
    for scheduler, told in zip(others, scheduled, strict=True):
        scheduler.load_state_dict(told)
    for pipe, schedulers in ((whole, its), (resumed, others)):
        run(pipe, schedulers, data[5:])
        pipe.flush()
    assert_same(resumed.state_dict(), whole.state_dict())
    (first, *_) = whole.optimizers
    assert first is not None
    assert [group["lr"] for group in first.param_groups] == [0.02 / 32, 0.01 / 32]


def test_after_loading_the_parts_still_share_groups_and_state() -> None:
    params = list(mlp(2)[0].parameters())
    both = joined(muon_and_adamw(params))
    both.load_state_dict(both.state_dict())
    for group in both.param_groups:
        group["lr"] = 1.0
    for part in both.parts:
        assert part.state is both.state
        assert [group["lr"] for group in part.param_groups] == [1.0]


def test_split_measures_layers_that_have_nothing_for_one_of_the_optimizers() -> None:
    layers = [nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5)]
    stages = dg.split(
        nn.Sequential(*layers), 2, sample_inputs=torch.ones(2, 6), make_optimizer=muon_and_adamw
    )
    pipe = dg.LocalPipeline(stages, cross_entropy, muon_and_adamw)
    pipe.step(*next(batches(1, (6,))))


def test_a_stage_with_nothing_for_one_of_them_is_told_how() -> None:
    stages = [nn.Linear(6, 6), nn.Sequential(nn.LayerNorm(6)), nn.Linear(6, CLASSES)]
    with pytest.raises(dg.StageError, match=r'stage: 1.*Muon\(\[\{"params": matrices\}\]\)'):
        dg.LocalPipeline(stages, cross_entropy, muon_and_adamw)

    def in_groups(params: list[nn.Parameter]) -> list[Optimizer]:
        matrices = {"params": [p for p in params if p.ndim == 2]}
        others = {"params": [p for p in params if p.ndim != 2]}
        return [Muon([matrices], lr=0.02), AdamW([others], lr=0.01)]

    pipe = dg.LocalPipeline(stages, cross_entropy, in_groups)
    before = parameters(stages)
    for x, y in batches(4, (6,)):
        pipe.step(x, y)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(stages), strict=True))


def test_a_checkpoint_of_other_optimizers_is_refused() -> None:
    def make(maker: Any) -> dg.LocalPipeline:
        return dg.LocalPipeline(into_stages(2), cross_entropy, maker)

    pipe = make(muon_and_adamw)
    for x, y in batches(4, (6,)):
        pipe.step(x, y)
    state = pipe.state_dict()
    with pytest.raises(dg.CheckpointError, match=r"there: Muon\+AdamW, here: AdamW"):
        make(lambda params: AdamW(params)).load_state_dict(state)
    state["stages"]["1"]["optimizer"]["state"][0].pop("momentum_buffer")
    with pytest.raises(dg.CheckpointError, match="momentum_buffer there: absent"):
        make(muon_and_adamw).load_state_dict(state)


def test_a_part_stepped_by_hand_is_an_error() -> None:
    pipe = dg.LocalPipeline(into_stages(2), cross_entropy, muon_and_adamw)
    x, y = next(batches(1, (6,)))
    pipe.step(x, y)
    for optimizer in pipe.optimizers:
        assert optimizer is not None
        for step in (optimizer.step, *(part.step for part in optimizer.parts)):  # type: ignore[attr-defined]
            with pytest.raises(dg.StageError, match="called outside the pipeline"):
                step()
    pipe.close()
    for optimizer in pipe.optimizers:
        assert optimizer is not None
        optimizer.step()


@pytest.mark.parametrize("in_a_list", [False, True])
def test_a_frozen_stage_needs_no_optimizer(in_a_list: bool) -> None:
    """Optimizers over the trainable parameters only, as one writes it for a frozen backbone."""

    def make_optimizer(params: list[nn.Parameter]) -> Any:
        trainable = [p for p in params if p.requires_grad]
        if in_a_list:
            return [SGD([p], lr=0.1) for p in trainable]
        return SGD(trainable, lr=0.1)

    stages = into_stages(3)
    stages[0].requires_grad_(False)
    naive = NaiveDelayedGradients(stages, cross_entropy, lambda params: SGD(params, lr=0.1))
    pipe = dg.LocalPipeline(stages, cross_entropy, make_optimizer)
    assert pipe.optimizers[0] is None
    for x, y in batches(6, (6,)):
        pipe.step(x, y)
        naive.step(x, y)
    assert_same(parameters(stages), parameters(naive.stages))
    stages[0].requires_grad_(True)
    with pytest.raises(dg.StageError, match=r"unfrozen in a stage .*\(stage: 0"):
        for x, y in batches(4, (6,)):
            pipe.step(x, y)


def test_lazy_modules_are_refused_until_they_have_seen_a_batch() -> None:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.LazyLinear(7), nn.Tanh()), nn.LazyLinear(CLASSES)]

    def make() -> dg.LocalPipeline:
        return dg.LocalPipeline(stages, cross_entropy, lambda ps: SGD(ps, lr=0.1))

    with pytest.raises(dg.StageError, match=r"lazy .*stage: 0, parameter: 0.weight.*on a batch"):
        make()
    x, y = next(batches(1, (6,)))
    nn.Sequential(*stages)(x)
    make().step(x, y)
