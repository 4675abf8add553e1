"""Ranks that hold copies of one parameter are told so when they make their pipeline."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from networks import OPTIMIZERS
from ranks import run_ranks
from torch import nn
from torch.nn.functional import cross_entropy

import delaygrad as dg


def stage_of(kind: str, rank: int) -> nn.Module:
    torch.manual_seed(0)
    embedding, head, other = nn.Embedding(90, 60), nn.Linear(60, 90), nn.Linear(60, 90)
    if kind in ("tied", "tied and frozen", "frozen in one"):
        head.weight = embedding.weight
    if kind == "tied and frozen" or (kind == "frozen in one" and rank == 1):
        embedding.weight.requires_grad_(False)
    if kind == "one name":
        other.weight = head.weight
        return (
            nn.Sequential(nn.Linear(90, 60), head) if rank == 0 else nn.Sequential(nn.Tanh(), other)
        )
    if kind == "one element differs":
        other.load_state_dict(head.state_dict())
        with torch.no_grad():
            other.weight[0, 1] += 1  # not in the sample: every second of 5400
        return nn.Sequential(nn.Tanh(), (head, other)[rank])
    if kind == "copied layers of one model":  # as nn.TransformerEncoder's
        layer = nn.Linear(60, 60)
        return dg.split(nn.Sequential(layer, copy.deepcopy(layer)), 2, cuts=["1"])[rank]
    if kind == "constants":
        nn.init.zeros_(head.weight)
        nn.init.ones_(head.bias)
        torch.manual_seed(rank)
        return nn.Sequential(nn.Linear(90, 60), nn.LayerNorm(60), head)
    return nn.Sequential(embedding) if rank == 0 else nn.Sequential(nn.Tanh(), head)


def make(rank: int, world_size: int, kind: str) -> tuple[str | None, list[str]]:
    stage = stage_of(kind, rank)
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pipe = dg.DistributedPipeline(stage, cross_entropy, OPTIMIZERS["sgd"], timeout_s=30)
            pipe.close()
        except dg.PartitionError as raised:
            error = str(raised)
    return error, [str(w.message) for w in caught if w.category is dg.DelaygradWarning]


@pytest.mark.parametrize("kind", ["tied", "frozen in one"])
def test_a_copy_under_two_names_is_a_warning(kind: str) -> None:
    for error, warned in run_ranks(make, 2, args=(kind,)):
        assert error is None
        (message,) = warned
        assert "(stage 0: 0.weight, stage 1: 1.weight, shape: (90, 60))" in message


def test_a_copy_under_one_name_is_an_error_on_every_rank() -> None:
    for error, _ in run_ranks(make, 2, args=("one name",)):
        assert error is not None and "(stage 0: 1.weight, stage 1: 1.weight" in error
        assert "keep it in one stage" in error


@pytest.mark.parametrize(
    "kind",
    [
        "untied",
        "tied and frozen",
        "one element differs",
        "constants",
        "copied layers of one model",
    ],
)
def test_other_parameters_say_nothing(kind: str) -> None:
    outcomes = run_ranks(make, 2, args=(kind,))
    if kind == "one element differs":  # but for the biases, which are copies in this test
        assert all(error is not None and "1.bias" in error for error, _ in outcomes)
        assert not any("1.weight" in str(outcome) for outcome in outcomes)
    else:
        assert outcomes == [(None, [])] * 2
