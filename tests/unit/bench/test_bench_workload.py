from __future__ import annotations

from typing import get_args

import pytest
import torch

from delaygrad.bench import ContestConfig
from delaygrad.bench.config import WorkloadName
from delaygrad.bench.workload import load_workload
from delaygrad.partition import layer_names, split


@pytest.mark.parametrize("name", get_args(WorkloadName))
def test_network_and_batch_are_the_same_each_time_and_train(name: WorkloadName) -> None:
    workload = load_workload(ContestConfig(workload=name, smoke=True))
    model, twin = workload.model(), workload.model()
    assert all(
        torch.equal(one, two)
        for one, two in zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    )
    inputs, targets = workload.batch()
    assert torch.equal(inputs, workload.batch()[0])
    assert len(inputs) % 16 == 0  # micro-batches, up to 16, divide it
    optimizer = workload.make_optimizer(list(model.parameters()))
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = workload.loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_sizes_are_those_of_the_issue() -> None:
    gpt = load_workload(ContestConfig(workload="gpt25m"))
    assert sum(p.numel() for p in gpt.model().parameters()) == pytest.approx(25e6, rel=0.02)
    assert tuple(gpt.batch()[0].shape) == (8, 128)
    assert len(load_workload(ContestConfig(workload="resnet56")).batch()[0]) == 32
    assert len(load_workload(ContestConfig(workload="resnet110")).batch()[0]) == 128


def test_images_and_convolutions_are_channels_last() -> None:
    workload = load_workload(ContestConfig(workload="resnet56", smoke=True))
    images, _ = workload.batch()
    assert images.is_contiguous(memory_format=torch.channels_last)
    outputs = workload.model()[:4](images)
    assert outputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stages", [1, 2, 4, 16])
def test_sleeping_stages_are_cut_evenly_also_in_halves(stages: int) -> None:
    workload = load_workload(ContestConfig(workload="sleep", stages=stages))
    assert workload.known_cuts is not None
    for parts in (stages, 2 * stages):
        pieces = split(workload.model(), parts, cuts=workload.known_cuts(parts))
        assert {len(layer_names(piece)) for piece in pieces} == {2 * stages // parts}


def test_sleeping_stages_may_differ() -> None:
    config = ContestConfig(
        workload="sleep", stages=2, stage_forward_s=(0.1, 0.2), stage_backward_s=(0.3, 0.4)
    )
    layers = list(load_workload(config).model())
    halves = [(64 * layer.forward_s, 64 * layer.backward_s) for layer in layers]
    expected = [(0.05, 0.15), (0.05, 0.15), (0.1, 0.2), (0.1, 0.2)]
    assert halves == [pytest.approx(half) for half in expected]


def test_boundary_of_sleeping_stages_has_the_bytes_asked_for() -> None:
    workload = load_workload(ContestConfig(workload="sleep", boundary_bytes=1 << 20))
    inputs, _ = workload.batch()
    assert inputs.nbytes == workload.model()(inputs).nbytes == 1 << 20
