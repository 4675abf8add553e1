"""Corrections of late updates against their papers' formulas, written out, in double precision.

The order of the arithmetic differs, so the tolerance is 1e-12, relative and absolute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from equivalence.naive_ticks import NaiveTicks
from exact import assert_same
from networks import batches, into_stages, mlp
from torch import nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.methods.adl import ADL
from delaygrad.methods.axes import DelayCompensation, DelayScaledLR, ErrorFeedback
from delaygrad.methods.dsp import DSP
from delaygrad.methods.error_feedback import DelayedEF
from delaygrad.methods.pipedream import PipeDream
from delaygrad.methods.pipelined_bp import PipelinedBP
from delaygrad.methods.pipemare import PipeMare
from delaygrad.methods.pipeoptim import PipeOptim
from delaygrad.schedule import locked

LR, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
Parameters = list[nn.Parameter]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def sgd(params: Parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


def velocities(parameters: Parameters, state: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    """(parameter, gradient with weight decay, new velocity) of heavy-ball SGD."""
    found = []
    for i, p in enumerate(parameters):
        g = p.grad + DECAY * p
        state[i] = v = MOMENTUM * state.get(i, torch.zeros_like(p)) + g
        found.append((p, g, v))
    return found


def spike_compensated(parameters: Parameters, state: dict[str, Any], delay: int, _: int) -> None:
    a = MOMENTUM**delay
    b = sum(MOMENTUM**i for i in range(delay))
    for p, g, v in velocities(parameters, state):
        p.sub_(LR * (a * v + b * g))


def delay_scaled(parameters: Parameters, state: dict[str, Any], delay: int, index: int) -> None:
    lr = LR / max(delay, 1) ** (1 - min(index / 5, 1))
    for p, _, v in velocities(parameters, state):
        p.sub_(lr * v)


def error_fed_back(parameters: Parameters, state: dict[str, Any], delay: int, _: int) -> None:
    for i, (p, _, v) in enumerate(velocities(parameters, state)):
        u, last = LR * v, state.get(("last", i))
        if delay:
            state["last", i] = u
        p.sub_(u if last is None else u + 0.7 * (u - last))


def above(k: int, num_stages: int) -> int:
    return num_stages - 1 - k


LOCKED = {"offset": lambda k, _: 0, "lag": above}
UNLOCKED = {"offset": lambda k, _: k, "lag": lambda k, num_stages: 2 * above(k, num_stages)}
CASES: dict[str, tuple[dg.Method, dict[str, Any]]] = {
    "spike": (PipelinedBP(predict=False), {**UNLOCKED, "update": spike_compensated}),
    "spike and prediction": (
        PipelinedBP(),
        {**UNLOCKED, "update": spike_compensated, "horizon": UNLOCKED["lag"]},
    ),
    "scaled": (
        dg.Method(name="t1", schedule=locked(), update=(DelayScaledLR(5),)),
        {**LOCKED, "update": delay_scaled},
    ),
    "error feedback": (
        DelayedEF(micro_batches=3, strength=0.7),
        {**UNLOCKED, "update": error_fed_back, "micro_batches": 3},
    ),
    "pipedream": (PipeDream(), UNLOCKED),
    "adl": (ADL(micro_batches=2), {**UNLOCKED, "micro_batches": 2}),
    "dsp": (DSP(), {**UNLOCKED, "replays": True}),
    "pipeoptim": (PipeOptim(), {**UNLOCKED, "replays": True, "horizon": UNLOCKED["lag"]}),
}


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_formula_of_its_paper(case: str, num_stages: int) -> None:
    method, rule = CASES[case]
    torch.manual_seed(0)
    stages = into_stages(mlp(4), num_stages)
    naive = NaiveTicks(stages=stages, make_optimizer=sgd, **rule)
    naive.run(list(batches(9, (6,), sizes=(6,))))
    pipe = dg.LocalPipeline(stages, cross_entropy, sgd, method=method)
    for x, y in batches(9, (6,), sizes=(6,)):
        pipe.step(x, y)
    pipe.flush()
    for ours, theirs in zip(stages, naive.stages, strict=True):
        for p, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)


def trained(method: dg.Method, change: Callable[[dg.LocalPipeline, int], None]) -> list[Any]:
    torch.manual_seed(0)
    stages = into_stages(mlp(4), 3)
    pipe = dg.LocalPipeline(stages, cross_entropy, sgd, method=method)
    for index, (x, y) in enumerate(batches(9, (6,))):
        change(pipe, index)
        pipe.step(x, y)
    return [p.detach() for stage in stages for p in stage.parameters()]


def test_pipemare_is_live_weights_with_scaled_learning_rates() -> None:
    def by_hand(pipe: dg.LocalPipeline, index: int) -> None:
        for k, optimizer in enumerate(pipe.optimizers):
            delay = pipe.method.delay(k, 3)
            update = index - 2 * 2 + k  # of this stage, when this iteration comes
            power = 1 - min(max(update, 0) / 5, 1)
            optimizer.param_groups[0]["lr"] = LR / max(delay, 1) ** power

    assert_same(
        trained(PipeMare(anneal=5), lambda pipe, index: None),
        trained(dg.FDG(beta=1.0, weights="live"), by_hand),
    )


def test_delay_compensation_adds_the_squared_gradient_times_the_drift() -> None:
    torch.manual_seed(0)
    stages = into_stages(mlp(2), 2)
    plain = copy.deepcopy(stages)
    method = dg.Method(name="dc", schedule=locked(), update=(DelayCompensation(0.5),))
    pipe = dg.LocalPipeline(stages, cross_entropy, sgd, method=method)
    reference = dg.LocalPipeline(plain, cross_entropy, sgd)
    w = []
    for x, y in batches(3, (6,)):
        w.append([p.detach().clone() for p in stages[0].parameters()])
        pipe.step(x, y)
        reference.step(x, y)
    # The first update of stage 0 meets what its forward met; the second one does not.
    gradients = [p.grad for p in stages[0].parameters()]
    uncorrected = [p.grad for p in plain[0].parameters()]
    for g, raw, now, met in zip(gradients, uncorrected, w[2], w[1], strict=True):
        torch.testing.assert_close(g, raw + 0.5 * raw * raw * (now - met), rtol=1e-12, atol=1e-12)
    assert any(not torch.equal(a, b) for a, b in zip(gradients, uncorrected, strict=True))


def test_states_of_corrections_are_in_checkpoints() -> None:
    def run(stop: int | None) -> list[Any]:
        torch.manual_seed(0)
        stages, data = into_stages(mlp(4), 3), list(batches(9, (6,), sizes=(6,)))
        method = dg.Method(name="ef", schedule=locked(), update=(ErrorFeedback(), DelayScaledLR(6)))
        pipe = dg.LocalPipeline(stages, cross_entropy, sgd, method=method)
        for index, (x, y) in enumerate(data):
            if index == stop:
                state = pipe.state_dict()
                stages = into_stages(mlp(4), 3)
                pipe = dg.LocalPipeline(stages, cross_entropy, sgd, method=method)
                pipe.load_state_dict(state)
            pipe.step(x, y)
        return [p.detach() for stage in stages for p in stage.parameters()]

    assert_same(run(stop=5), run(stop=None))


def test_spike_compensation_refuses_what_it_cannot_read() -> None:
    pipe = dg.LocalPipeline(
        into_stages(mlp(2), 2),
        cross_entropy,
        lambda params: torch.optim.Adam(params),
        method=PipelinedBP(predict=False),
    )
    data = batches(4, (6,))
    with pytest.raises(dg.StageError, match="spike compensation is for torch.optim.SGD"):
        for x, y in data:
            pipe.step(x, y)
