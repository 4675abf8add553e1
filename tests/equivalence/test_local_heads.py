"""Decoupled greedy learning against a loop that trains each stage by a classifier of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from exact import assert_same
from networks import CLASSES, NETWORKS, OPTIMIZERS, batches, into_stages
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.methods import METHODS

DGL = METHODS["dgl"]


def naive(stages: list[nn.Module], data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    optimizers = [OPTIMIZERS["nesterov"](list(stage.parameters())) for stage in stages]
    heads: list[tuple[nn.Linear, torch.optim.Optimizer]] = []
    losses = []
    for x, y in data:
        for k, stage in enumerate(stages):
            optimizers[k].zero_grad()
            out = stage(x.clone())
            if k == len(stages) - 1:
                loss = cross_entropy(out, y)
                losses.append(loss.detach())
                loss.backward()
            else:
                if k == len(heads):
                    head = nn.Linear(out.shape[1], CLASSES)
                    for p in head.parameters():
                        nn.init.zeros_(p)
                    heads.append((head, torch.optim.Adam(head.parameters(), lr=0.01)))
                head, adam = heads[k]
                adam.zero_grad()
                leaf = out.detach().requires_grad_()
                features = leaf.mean((2, 3)) if leaf.dim() == 4 else leaf
                cross_entropy(head(features), y).backward()
                adam.step()
                out.backward(leaf.grad)
                x = out.detach()
            optimizers[k].step()
    return losses


@pytest.mark.parametrize("network", ["batch norm", "in-place convolutions"])
def test_each_stage_learns_from_its_classifier(network: str) -> None:
    torch.manual_seed(0)
    stages = into_stages(NETWORKS[network][0](), 3)
    theirs = copy.deepcopy(stages)
    data = list(batches(8, NETWORKS[network][1], sizes=(6, 4)))
    pipe = dg.LocalPipeline(
        stages, cross_entropy, OPTIMIZERS["nesterov"], method=DGL(CLASSES, head_lr=0.01)
    )
    losses = []
    for index, (inputs, targets) in enumerate(data):
        losses.append(pipe.step(inputs, targets))
        if index == 4:
            pipe.load_state_dict(pipe.state_dict())  # the classifiers are part of it
    pipe.flush()
    assert_same(losses, naive(theirs, data))
    assert_same([s.state_dict() for s in stages], [s.state_dict() for s in theirs])


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="classes must be at least 2"):
        DGL(1)
    with pytest.raises(ValueError, match="head_lr must be positive"):
        DGL(3, head_lr=0.0)
