"""Step sizes with the two sums that the theorem asks for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delaygrad.theory import PolynomialDecay, check_step_sizes

DECAYS = st.builds(
    PolynomialDecay,
    lr=st.floats(0.01, 10),
    time_scale=st.floats(0.5, 1e4),
    power=st.floats(0.51, 1.0),
)


def test_steps_in_literal_values() -> None:
    assert PolynomialDecay(lr=3.0, time_scale=1, power=1.0).steps(4) == pytest.approx(
        [3, 1.5, 1, 0.75]
    )
    fourth_root = PolynomialDecay(lr=1.0, time_scale=5, power=0.75)
    assert fourth_root(75) == pytest.approx(1 / 8)  # 16^(-3/4)


def least_sum(decay: PolynomialDecay, iterations: int) -> float:
    """The integral from 0 to ``iterations`` of the falling function: below the sum of the steps."""
    fallen, rest = math.log1p(iterations / decay.time_scale), 1 - decay.power
    return decay.lr * decay.time_scale * (math.expm1(rest * fallen) / rest if rest else fallen)


def most_sum_of_squares(decay: PolynomialDecay) -> float:
    """The first term and the integral over the rest: above the sum of all squared steps."""
    return decay.lr**2 * (1 + decay.time_scale / (2 * decay.power - 1))


@given(decay=DECAYS, iterations=st.integers(1, 2000))
def test_the_sums_are_within_their_bounds(decay: PolynomialDecay, iterations: int) -> None:
    steps = decay.steps(iterations)
    assert least_sum(decay, iterations) <= sum(steps) * (1 + 1e-12)
    assert sum(step**2 for step in steps) <= most_sum_of_squares(decay) * (1 + 1e-12)
    assert steps == sorted(steps, reverse=True) and steps[0] == decay.lr


@pytest.mark.parametrize("power", [0.51, 0.75, 1.0])
def test_the_sum_of_the_steps_passes_every_limit(power: float) -> None:
    decay = PolynomialDecay(lr=0.1, time_scale=10, power=power)
    assert least_sum(decay, 10**60) > 100 > 10 * most_sum_of_squares(decay)


@pytest.mark.parametrize("power", [0.5, 0.0, -1.0, 1.01, float("nan")])
def test_a_power_that_breaks_a_condition_is_refused(power: float) -> None:
    with pytest.raises(ValueError, match="power must be above 1/2"):
        PolynomialDecay(lr=0.1, power=power)


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"lr": 0.1, "time_scale": 0.0}])
def test_a_step_or_a_time_scale_of_zero_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive and finite"):
        PolynomialDecay(**settings)


def test_conditions_are_checked_step_by_step() -> None:
    check_step_sizes([1 / 3, 1 / 3, 0.1], smoothness=3.0)
    for steps, message in (
        ([], "at least one step size"),
        ([0.1, 0.0], "step must be positive"),
        ([0.5], "lower the step to 0.333333"),
        ([0.1, 0.2], "must not rise .iteration: 1"),
    ):
        with pytest.raises(ValueError, match=message):
            check_step_sizes(steps, smoothness=3.0)
