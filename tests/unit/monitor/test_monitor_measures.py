"""The numbers of the monitor on gradients chosen by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from delaygrad.monitor.advice import Advice
from delaygrad.monitor.measures import (
    compare_directions,
    distance_ratio,
    momentum_of,
    stability,
    step_times_curvature,
)
from delaygrad.theory import largest_stable_step


def test_what_has_no_length_has_no_direction() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    nothing = {"sufficient_direction": None, "cosine": None, "staleness_ratio": None}
    assert compare_directions([one], [zero]) == nothing
    assert compare_directions([None], [None]) == nothing
    still = {"sufficient_direction": 0.0, "cosine": None, "staleness_ratio": 1.0}
    assert compare_directions([None], [one]) == still


def test_values_that_are_not_finite_are_not_measured() -> None:
    row = compare_directions([torch.tensor([torch.inf])], [torch.ones(1)])
    assert row == {"sufficient_direction": None, "cosine": None, "staleness_ratio": None}


def test_a_perfect_prediction_has_no_error() -> None:
    end, start = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)}
    assert distance_ratio(end, end, start) == 0
    assert distance_ratio(end, start, start) == 1
    assert distance_ratio(end, {}, start) is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_step_of_sgd_is_its_learning_rate(momentum: float) -> None:
    w, hessian = nn.Parameter(torch.zeros(2)), torch.tensor([3.0, 1.0])
    sgd = torch.optim.SGD([w], lr=0.1, momentum=momentum)
    moved = torch.tensor([1.0, 1.0])
    found = step_times_curvature(sgd, {"w": w}, {"w": moved}, {"w": hessian * moved})
    assert found == pytest.approx(0.1 * 2.0)
    assert stability(found, sgd, 3, None) == pytest.approx(
        0.2 / largest_stable_step(3, momentum=momentum)
    )
    assert stability(found, sgd, 3, 1.5) == pytest.approx(
        0.2 / largest_stable_step(3, momentum=momentum, horizon=1.5)
    )


def test_adam_steps_each_parameter_by_its_own_rate() -> None:
    w = nn.Parameter(torch.zeros(2))
    adam = torch.optim.Adam([w], lr=0.1, betas=(0.8, 0.99), eps=0.0)
    w.grad = torch.tensor([4.0, 0.5])
    adam.step()  # sqrt(v), without its bias, is now |grad|
    rates = 0.1 * (1 - 0.8) / w.grad
    moved, change = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    found = step_times_curvature(adam, {"w": w}, {"w": moved}, {"w": change})
    assert found == pytest.approx(float((moved @ change) / (moved @ (moved / rates))), rel=1e-5)
    assert momentum_of(adam) == (0.8, False)


def test_another_optimizer_has_no_known_step() -> None:
    w = nn.Parameter(torch.zeros(1))
    moved = {"w": torch.ones(1)}
    assert step_times_curvature(torch.optim.Rprop([w]), {"w": w}, moved, moved) is None


def test_advice_comes_once_until_all_was_well() -> None:
    advice = Advice()
    ill = {"stage": 1, "delay": 2, "stability": 1.5, "sufficient_direction": 0.9, "growth": 1.0}
    well, uphill = {**ill, "stability": None}, {**ill, "stability": 0.1, "stage": 0}
    uphill["sufficient_direction"] = -0.5
    other = {**well, "stage": 0}
    rows = [ill, well, well, well, uphill, ill, ill, well, other, well, well, ill, uphill, ill]
    said = [advice.look(row) for row in rows]
    assert [index for index, text in enumerate(said) if text is not None] == [5, 12]
    text = str(said[5])
    assert text.startswith("stage 1 takes steps 1.5 times the largest stable one")
    assert all(word in text for word in ("lower the learning rate", "micro-batches", "Lookahead"))
    assert str(said[12]).split(" by now")[0] == "stage 0 applies gradients that point uphill"
    advice = Advice()  # of one stage in a row, however many others there are
    between = [{**well, "stage": k} for k in range(2, 8)]
    assert [advice.look(row) is None for row in (ill, *between, ill)] == [True] * 7 + [False]
    grown, advice = {**well, "growth": 11.0}, Advice()
    assert advice.look({**grown, "growth": 9.0}) is None is advice.look(grown)
    assert str(advice.look(grown)).startswith(
        "the norm of a stage's gradient is 11 times as large as"
    )
