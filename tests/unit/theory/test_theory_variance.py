"""The bound that needs no M, and the step that it certifies."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delaygrad.theory import certified_step, largest_stable_step, variance_bound

RUN: dict[str, Any] = {"smoothness": 2.0, "gap": 3.0, "delay": 2, "step": 0.1, "iterations": 60}


def test_full_batches_by_hand() -> None:
    # c = 1 - 0.1 * 2 * 2.5 = 0.5; F / (step T c) = 3 / 3
    assert variance_bound(**RUN) == pytest.approx(1.0)


def test_noise_by_hand() -> None:
    # A = 0.5 + 0.1 * 2 * 4 / 2 = 0.9; s = 0.2 sqrt(8); c = 0.5
    slope = 0.2 * math.sqrt(8)
    expected = (slope + math.sqrt(slope**2 + 4 * 0.5 * 0.9)) ** 2
    assert variance_bound(variance=4.0, **RUN) == pytest.approx(expected)


def test_without_delay_it_is_the_textbook_of_gradient_descent() -> None:
    bound = variance_bound(smoothness=2.0, gap=3.0, delay=0, step=0.1, iterations=60)
    assert bound == pytest.approx(3 / (0.1 * 60 * (1 - 0.1 * 2 / 2)))
    assert certified_step(4.0, 0) == 0.5


@given(delay=st.integers(0, 200), smoothness=st.floats(0.01, 100))
def test_a_quadratic_diverges_less_than_half_pi_above_the_certified_step(
    delay: int, smoothness: float
) -> None:
    stable = largest_stable_step(delay, curvature=smoothness)
    certified = certified_step(smoothness, delay)
    assert certified <= stable * (1 + 1e-12) and stable < math.pi / 2 * certified


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 0.2}, r"below 2 / .smoothness .2 delay . 1.. .step: 0.2, limit: 0.2"),
        ({"step": 0.0}, "step must be positive"),
        ({"gap": -1.0}, "gap must be positive"),
        ({"iterations": 0}, "iterations must be positive"),
        ({"variance": -1.0}, "variance must be finite, not negative"),
        ({"delay": -1}, "a delay is a whole number"),
        ({"smoothness": 0.0}, "smoothness must be positive"),
    ],
)
def test_what_the_proof_does_not_cover_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variance_bound(**{**RUN, **change})
