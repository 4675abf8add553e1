"""The probe against gradients that the test computes itself from stored parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import NETWORKS, OPTIMIZERS, batches, into_stages
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.training.direction_probe import DirectionProbe, compare_directions

NUM_STAGES, NUM_BATCHES = 3, 12


def gradients_at(stages: list[nn.Module], batch: tuple[Tensor, Tensor]) -> list[list[Tensor]]:
    network = nn.Sequential(*copy.deepcopy(stages))
    network.zero_grad()
    cross_entropy(network(batch[0]), batch[1]).backward()
    return [[p.grad for p in stage.parameters()] for stage in network]


def by_hand(applied: list[Tensor], reference: list[Tensor]) -> tuple[float, float, float]:
    g = torch.cat([t.flatten() for t in applied]).double()
    true = torch.cat([t.flatten() for t in reference]).double()
    dot, square = g @ true, true @ true
    return (
        float(dot / square),
        float(dot / (g.norm() * true.norm())),
        float((g - true).square().sum() / square),
    )


def probed(method: dg.Method, every: int, network: str = "batch norm") -> list[dict[str, Any]]:
    """Events of a run, each checked against snapshots of the parameters."""
    torch.manual_seed(0)
    make_blocks, shape = NETWORKS[network]
    stages = into_stages(make_blocks(), NUM_STAGES)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["nesterov"], method=method)
    probe = DirectionProbe(pipe, every)
    data = list(batches(NUM_BATCHES, shape, sizes=(8, 5)))
    snapshots, applied, events = [], [], []
    for t, (inputs, targets) in enumerate(data):
        before = copy.deepcopy(pipe.stages)
        statistics = copy.deepcopy([dict(stage.state_dict()) for stage in pipe.stages])
        probe.before(t, inputs, targets)
        after = [dict(stage.state_dict()) for stage in pipe.stages]
        for was, now in zip(statistics, after, strict=True):
            assert all(torch.equal(was[name], now[name]) for name in was)  # disturbs nothing
        snapshots.append(before)
        pipe.step(inputs, targets)
        applied.append(
            [[copy.deepcopy(p.grad) for p in stage.parameters()] for stage in pipe.stages]
        )
        event = probe.after(t)
        if event is None:
            continue
        events.append(event)
        s = event["iteration"]
        for row in event["stages"]:
            k, delay = row["stage"], row["delay"]
            assert delay == method.delay(k, NUM_STAGES)
            true = gradients_at(snapshots[s + delay], data[s])[k]
            expected = by_hand(applied[s + delay][k], true)
            cosine = float("nan") if row["cosine"] is None else row["cosine"]
            got = row["sufficient_direction"], cosine, row["staleness_ratio"]
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-9, nan_ok=True)
    return events


@pytest.mark.parametrize(
    ("method", "every", "iterations"),
    [
        (dg.DDG(), 4, [0, 4, 8]),
        (dg.DDG(), 1, [0, 3, 6, 9]),  # one batch at a time: the next comes after delay 2
        (dg.DDG(slack=1), 5, [0, 5]),
        (dg.DDG(weights="live"), 4, [0, 4, 8]),
        (dg.DNI(synthesizer_width=4), 6, [0, 6]),
        (dg.BP(), 5, [0, 5, 10]),
    ],
    ids=repr,
)
def test_what_is_measured(method: dg.Method, every: int, iterations: list[int]) -> None:
    events = probed(method, every)
    assert [event["iteration"] for event in events] == iterations
    assert [[row["stage"] for row in event["stages"]] for event in events] == [[0, 1, 2]] * len(
        events
    )
    directions = [row["sufficient_direction"] for event in events for row in event["stages"]]
    if method == dg.BP():
        assert directions == pytest.approx([1.0] * len(directions))
    else:
        assert max(abs(direction - 1) for direction in directions) > 1e-3


def test_random_numbers_go_on_as_without_the_probe() -> None:
    torch.manual_seed(3)
    stages = into_stages(NETWORKS["dropout"][0](), 2)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"])
    ((inputs, targets),) = batches(1, (6,))
    state = torch.get_rng_state()
    probe = DirectionProbe(pipe, 1)
    probe.before(0, inputs, targets)
    probe.after(0)
    probe.before(1, inputs, targets)
    assert probe.after(1) is not None
    assert torch.equal(torch.get_rng_state(), state)


def test_no_probe_no_event() -> None:
    stages = into_stages(NETWORKS["mlp"][0](), 2)
    probe = DirectionProbe(dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["sgd"]), 0)
    probe.before(0, torch.zeros(1, 6), torch.zeros(1, dtype=torch.int64))
    assert probe.after(0) is None


def test_what_has_no_length_has_no_direction() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    nothing = {"sufficient_direction": None, "cosine": None, "staleness_ratio": None}
    assert compare_directions([one], [zero]) == nothing
    assert compare_directions([None], [None]) == nothing
    still = {"sufficient_direction": 0.0, "cosine": None, "staleness_ratio": 1.0}
    assert compare_directions([None], [one]) == still
