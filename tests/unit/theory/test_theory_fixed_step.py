"""The step for which each proof promises most."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lemmas import root_rate_step

from delaygrad.theory import (
    Assumptions,
    Proof,
    best_fixed_step,
    effective_moment,
    fixed_step_bound,
    promise,
)

PROOFS: list[Proof] = ["published", "blockwise", "virtual"]
KNOWN = Assumptions(smoothness=2.0, second_moment=3.0, gap=5.0)


def simple_form(step: float, delay: int, iterations: int) -> float:
    """2 A + s^2 of the virtual bound."""
    noise = step * KNOWN.smoothness * KNOWN.second_moment
    stale = (step * KNOWN.smoothness * delay) ** 2 * KNOWN.second_moment
    return 2 * KNOWN.gap / (step * iterations) + noise + stale


@pytest.mark.parametrize("delay", [0, 1, 7, 31])
@pytest.mark.parametrize("iterations", [1, 100, 10**6])
def test_no_other_step_has_a_smaller_simple_form(delay: int, iterations: int) -> None:
    step = best_fixed_step(KNOWN, [delay, 0], iterations=iterations)
    here = simple_form(step, delay, iterations)
    for factor in (0.5, 0.99, 1.01, 2):
        assert here < simple_form(factor * step, delay, iterations)


@pytest.mark.parametrize("proof", ["published", "blockwise"])
@given(factor=st.floats(0.1, 0.999))
def test_no_smaller_step_promises_more(proof: Proof, factor: float) -> None:
    step = best_fixed_step(KNOWN, [2, 1, 0], iterations=10_000, proof=proof)
    bounds = [
        fixed_step_bound(KNOWN, [2, 1, 0], step=size, iterations=10_000, proof=proof)
        for size in (step, factor * step)
    ]
    assert bounds[0] < bounds[1]


@pytest.mark.parametrize("proof", ["published", "blockwise"])
def test_the_best_step_is_at_most_one_over_l(proof: Proof) -> None:
    assert best_fixed_step(KNOWN, [0], iterations=1, proof=proof) <= 0.5
    easy = Assumptions(smoothness=2.0, second_moment=1e-6, gap=5.0)
    assert best_fixed_step(easy, [0], iterations=1, proof=proof) == 0.5
    assert promise(easy, [0], iterations=1, proof=proof).step == 0.5


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_papers_corollary_in_its_closed_form(scale: float) -> None:
    delays, iterations = [1, 0], 10**6
    step = root_rate_step(KNOWN, delays, iterations=iterations, scale=scale)
    bound = fixed_step_bound(KNOWN, delays, step=step, iterations=iterations, proof="published")
    moment = effective_moment(KNOWN, delays, proof="published")
    root = math.sqrt(KNOWN.gap * KNOWN.smoothness * moment / iterations)
    assert bound == pytest.approx((2 + 2 * scale**2) / scale * root)


def test_the_price_of_delay_fades_in_the_virtual_bound_and_stays_in_the_published_one() -> None:
    def price(proof: Proof, iterations: int) -> float:
        late, none = (
            promise(KNOWN, delays, iterations=iterations, proof=proof).bound
            for delays in ([7, 6, 5, 4, 3, 2, 1, 0], [0])
        )
        return late / none

    virtual = [price("virtual", 10**n) for n in (4, 6, 8, 12)]
    assert virtual == sorted(virtual, reverse=True) and virtual[-1] < 1.02
    assert price("published", 10**12) == pytest.approx(math.sqrt((8 + 8**4) / 2))


def test_a_promise_says_whether_it_says_anything() -> None:
    delays = [7, 6, 5, 4, 3, 2, 1, 0]
    for proof in PROOFS:
        few, many = (
            promise(KNOWN, delays, iterations=iterations, proof=proof) for iterations in (10, 10**9)
        )
        assert few.is_vacuous and few.bound >= KNOWN.second_moment
        assert not many.is_vacuous and many.bound < KNOWN.second_moment


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="iterations must be positive"):
        promise(KNOWN, [0], iterations=0)
