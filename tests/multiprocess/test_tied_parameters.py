"""Ranks that hold copies of one parameter are told so when they make their pipeline."""

from __future__ import annotations

import copy
import warnings
from typing import Any

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


KINDS = {
    "tied": "warned",
    "frozen in one": "warned",
    "one name": "refused",
    "untied": "fine",
    "tied and frozen": "fine",
    "one element differs": "fine but for the biases",
    "constants": "fine",
    "copied layers of one model": "fine",
}


def make_each(rank: int, world_size: int) -> dict[str, tuple[str | None, list[str]]]:
    """The error and the warnings of each kind."""
    told = {}
    for kind in KINDS:
        stage, error = stage_of(kind, rank), None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                pipe = dg.DistributedPipeline(stage, cross_entropy, OPTIMIZERS["sgd"], timeout_s=30)
                pipe.close()
            except dg.PartitionError as raised:
                error = str(raised)
        told[kind] = error, [str(w.message) for w in caught if w.category is dg.DelaygradWarning]
    return told


@pytest.fixture(scope="module")
def told() -> list[dict[str, tuple[str | None, list[str]]]]:
    """What each rank was told of each kind; one group of processes makes all pipelines."""
    return run_ranks(make_each, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_a_parameter_are_told_on_every_rank(kind: str, told: list[Any]) -> None:
    for error, warned in (of_rank[kind] for of_rank in told):
        match KINDS[kind]:
            case "warned":
                assert error is None
                (message,) = warned
                assert "(stage 0: 0.weight, stage 1: 1.weight, shape: (90, 60))" in message
            case "refused":
                assert error is not None and "(stage 0: 1.weight, stage 1: 1.weight" in error
                assert "keep it in one stage" in error
            case "fine":
                assert (error, warned) == (None, [])
            case _:  # the biases are copies in this test
                assert error is not None and "1.bias" in error
                assert "1.weight" not in f"{error} {warned}"
