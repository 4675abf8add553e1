"""What a training loop expects beside ``step``: evaluation, losses for every rank, averages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exact import assert_same
from networks import batch_norm_mlp, batches, dropout_mlp, into_stages
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import delaygrad as dg
from delaygrad.runtime import Pipeline

BATCH = next(batches(1, (6,), seed=8, sizes=(10,)))


def make_optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01)


def build(num_stages: int, blocks: Any = batch_norm_mlp) -> list[nn.Module]:
    torch.manual_seed(1)
    return [nn.Sequential(nn.Dropout(0.3), stage) for stage in into_stages(blocks(), num_stages)]


def train(pipe: Pipeline, *, evaluates: bool) -> tuple[dict[str, Any], list[Any]]:
    """Losses and outputs of the evaluations, and the state at the end."""
    told = []
    for index, batch in enumerate(batches(6, (6,), sizes=(8,))):
        share = evaluates and index == 3
        loss = pipe.step(*batch, share_loss=share)
        told += [loss] if share else []
        if evaluates:
            told.append(pipe.evaluate(*BATCH, share_loss=index == 2))
    return pipe.state_dict(), told


def train_a_rank(rank: int, world_size: int) -> list[Any]:
    told = []
    for evaluates in (True, False):
        stage = build(world_size)[rank]
        with dg.DistributedPipeline(stage, cross_entropy, make_optimizer) as pipe:
            told.append(train(pipe, evaluates=evaluates))
    return told


def test_evaluation_disturbs_nothing_and_both_runtimes_evaluate_alike() -> None:
    ranks = run_ranks(train_a_rank, 3)
    pipe = dg.LocalPipeline(build(3), cross_entropy, make_optimizer)
    state, local = train(pipe, evaluates=True)
    assert_same(state, train_plainly())
    for told, without in ranks:
        assert_same(told[0], without[0])
        (k,) = told[0]["stages"]
        assert_same(told[0]["stages"][k], state["stages"][k])
    assert_same(ranks[-1][0][1], local)
    for told, _ in ranks[:-1]:
        shared = told[1].pop(3), told[1].pop(2)
        assert_same(shared, (local[3], (local[2][0], None)))
        assert told[1] == [(None, None)] * 5


def train_plainly() -> dict[str, Any]:
    pipe = dg.LocalPipeline(build(3), cross_entropy, make_optimizer)
    return train(pipe, evaluates=False)[0]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_loss_is_that_of_the_live_network_in_evaluation_mode(micro_batches: int) -> None:
    stages = build(2)
    method = dg.DDG(micro_batches=micro_batches)
    pipe = dg.LocalPipeline(stages, nn.CrossEntropyLoss(), make_optimizer, method=method)
    for batch in batches(3, (6,)):
        pipe.step(*batch)
    loss, outputs = pipe.evaluate(*BATCH)
    expected = BATCH[0]
    with torch.no_grad():
        for stage in copy.deepcopy(stages):
            expected = stage.eval()(expected)
    assert_same(outputs, expected)
    assert_same(loss, cross_entropy(expected, BATCH[1]))
    assert all(part.training for stage in stages for part in stage.modules())
    assert pipe.evaluate(BATCH[0][:1], BATCH[1][:1])[1].shape == (1, 5)  # fewer than micro-batches


class Spread(nn.Module):
    """A loss that parts of a batch do not add up to."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - outputs.mean(0)).square().sum() * len(targets)


def test_the_loss_follows_the_rule_for_micro_batches() -> None:
    stages = build(2, dropout_mlp)

    def pipeline(loss_fn: Any, loss_weight: Any) -> dg.LocalPipeline:
        return dg.LocalPipeline(
            stages,
            loss_fn,
            lambda params: torch.optim.SGD(params, lr=0.0),
            method=dg.DDG(micro_batches=3),
            loss_weight=loss_weight,
        )

    inputs, targets = BATCH
    for stage in stages:
        stage.eval()
    cases = (
        (Spread(), "mean"),
        (nn.CrossEntropyLoss(reduction="sum"), "sum"),
        (nn.CrossEntropyLoss(ignore_index=1), lambda targets: (targets != 1).sum()),
    )
    for loss_fn, loss_weight in cases:
        with pipeline(loss_fn, loss_weight) as pipe:
            trained = pipe.step(inputs, targets)
            torch.testing.assert_close(pipe.evaluate(inputs, targets)[0], trained)
            pipe.flush()


def test_schedulers_of_torch_do_not_warn_in_the_fill() -> None:
    pipe = dg.LocalPipeline(build(3), cross_entropy, make_optimizer)
    schedulers = [
        SequentialLR(
            optimizer,
            [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, 9)],
            milestones=[3],
        )
        for optimizer in pipe.optimizers
    ]
    rates = []
    for batch in batches(5, (6,)):
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in pipe.optimizers])
        pipe.step(*batch)
        for scheduler in schedulers:
            scheduler.step()
    assert all(len(set(of_stages)) == 1 for of_stages in rates)
    assert [rate for rate, *_ in rates[:4]] == pytest.approx([0.001, 0.004, 0.007, 0.01])


def test_averages_of_the_stages_are_those_of_the_network() -> None:
    stages, model = build(2, dropout_mlp), None
    with dg.LocalPipeline(stages, cross_entropy, make_optimizer) as pipe:
        averages = [AveragedModel(s, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for s in pipe.stages]
        seen = []
        for batch in batches(5, (6,)):
            pipe.step(*batch)
            for average, stage in zip(averages, pipe.stages, strict=True):
                average.update_parameters(stage)
            seen.append(copy.deepcopy(pipe.state_dict()["stages"]))
        model = nn.Sequential(*(average.module for average in averages))
        expected = None
        for states in seen:
            live = [value for k in states for value in states[k]["model"].values()]
            if expected is None:
                expected = [value.clone() for value in live]
            expected = [old.lerp(new, 1 - 0.9) for old, new in zip(expected, live, strict=True)]
        torch.testing.assert_close(list(model.state_dict().values()), expected)
        with_averages = pipe.state_dict()
    with dg.LocalPipeline(build(2, dropout_mlp), cross_entropy, make_optimizer) as pipe:
        for batch in batches(5, (6,)):
            pipe.step(*batch)
        assert_same(with_averages, pipe.state_dict())
