"""The bounds, against their formulas by hand, each other, and what is known of SGD."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lemmas import one_step_bound

from delaygrad.theory import (
    Assumptions,
    PolynomialDecay,
    Proof,
    diminishing_step_bound,
    fixed_step_bound,
)

PROOFS: list[Proof] = ["published", "blockwise", "virtual"]
POSITIVE = st.floats(0.01, 100)
ASSUMPTIONS = st.builds(Assumptions, smoothness=POSITIVE, second_moment=POSITIVE, gap=POSITIVE)
STAGES = st.integers(1, 20)


def falling(num_stages: int) -> list[int]:
    return list(range(num_stages - 1, -1, -1))


def test_fixed_step_by_hand() -> None:
    known = Assumptions(smoothness=2.0, second_moment=3.0, gap=5.0)
    run: dict[str, Any] = {"step": 0.1, "iterations": 200}
    # 2 F / (step T) = 0.5; M_K = 3 (2 + 16)
    assert fixed_step_bound(known, [1, 0], proof="published", **run) == pytest.approx(
        0.5 + 2 * 0.1 * 2 * 54
    )
    # S = 1: M_K = 3 * 2 * (1 + 1 + 2) / 2; the fill takes one iteration of 200
    assert fixed_step_bound(known, [1, 0], proof="blockwise", **run) == pytest.approx(
        0.5 + 2 * 0.1 * 2 * 12 + 3 / 200
    )
    # A = 0.25 + 0.3, s = 0.2 sqrt(3)
    root = (0.2 * math.sqrt(3) + math.sqrt(0.12 + 4 * 0.55)) / 2
    assert fixed_step_bound(known, [1, 0], **run) == pytest.approx(root**2)


@given(known=ASSUMPTIONS, share=st.floats(0.001, 1), iterations=st.integers(1, 10**6))
def test_one_stage_gives_the_textbook_bound_of_sgd(
    known: Assumptions, share: float, iterations: int
) -> None:
    step = share / known.smoothness
    textbook = known.gap / (step * iterations) + step * known.smoothness * known.second_moment / 2
    assert fixed_step_bound(known, [0], step=step, iterations=iterations) == pytest.approx(textbook)


@given(
    known=ASSUMPTIONS,
    num_stages=STAGES,
    share=st.floats(0.001, 1),
    iterations=st.integers(1, 10**6),
)
def test_virtual_is_the_smallest_bound_and_below_its_simple_form(
    known: Assumptions, num_stages: int, share: float, iterations: int
) -> None:
    step, delays = share / known.smoothness, falling(num_stages)
    published, blockwise, virtual = (
        fixed_step_bound(known, delays, step=step, iterations=iterations, proof=proof)
        for proof in PROOFS
    )
    stale = (share * (num_stages - 1)) ** 2 * known.second_moment
    simple = 2 * known.gap / (step * iterations) + share * known.second_moment + stale
    assert virtual <= simple * (1 + 1e-12)
    assert virtual <= min(published, blockwise) * (1 + 1e-12)


@pytest.mark.parametrize("proof", PROOFS)
@given(
    known=ASSUMPTIONS,
    num_stages=STAGES,
    share=st.floats(0.001, 0.5),
    iterations=st.integers(1, 10**5),
)
def test_more_of_what_is_bad_never_promises_more(
    proof: Proof, known: Assumptions, num_stages: int, share: float, iterations: int
) -> None:
    step = share / known.smoothness

    def bound(known: Assumptions, num_stages: int, iterations: int) -> float:
        delays = falling(num_stages)
        return fixed_step_bound(known, delays, step=step, iterations=iterations, proof=proof)

    here = bound(known, num_stages, iterations) * (1 - 1e-12)
    numbers = {name: getattr(known, name) for name in ("smoothness", "second_moment", "gap")}
    for name, value in numbers.items():
        assert bound(Assumptions(**{**numbers, name: 1.5 * value}), num_stages, iterations) >= here
    assert bound(known, num_stages + 1, iterations) >= here
    assert bound(known, num_stages, max(1, iterations // 2)) >= here


@pytest.mark.parametrize("proof", PROOFS)
@given(
    known=ASSUMPTIONS, num_stages=STAGES, share=st.floats(0.001, 1), iterations=st.integers(1, 90)
)
def test_steps_that_do_not_change_are_a_fixed_step(
    proof: Proof, known: Assumptions, num_stages: int, share: float, iterations: int
) -> None:
    step, delays = share / known.smoothness, falling(num_stages)
    fixed = fixed_step_bound(known, delays, step=step, iterations=iterations, proof=proof)
    steps = [step] * iterations
    assert diminishing_step_bound(known, delays, steps, proof=proof) == pytest.approx(fixed)


def test_falling_steps_by_hand() -> None:
    known = Assumptions(smoothness=1.0, second_moment=2.0, gap=3.0)
    steps, delays = [1.0, 0.5, 0.25], [1, 0]
    # sigma = 2, M_K = 2 (2 + 32); sums 1.75 and 1.3125
    assert diminishing_step_bound(known, delays, steps, proof="published") == pytest.approx(
        (6 + 2 * 68 * 1.3125) / 1.75
    )
    # low 0.5, 0.25, 0.25; high 1, 0.5, 0.25: cubes sum to 1.140625
    start, slope = 3 + 1.3125, math.sqrt(2 * 1.140625)
    root = (slope + math.sqrt(slope**2 + 4 * start)) / 2
    assert diminishing_step_bound(known, delays, steps) == pytest.approx(
        (root**2 + 2 * 0.75) / 1.75
    )


@pytest.mark.parametrize("proof", PROOFS)
@pytest.mark.parametrize("power", [0.6, 1.0])
def test_the_bound_goes_to_zero_where_the_conditions_hold(proof: Proof, power: float) -> None:
    known = Assumptions(smoothness=1.0, second_moment=1.0, gap=1.0)
    steps = PolynomialDecay(lr=0.5, time_scale=50, power=power).steps(100_000)
    bounds = [
        diminishing_step_bound(known, [2, 1, 0], steps[:iterations], proof=proof)
        for iterations in (100, 1_000, 10_000, 100_000)
    ]
    for before, after in zip(bounds, bounds[1:], strict=False):
        assert after < before * (0.6 if power == 0.6 else 0.9)


def test_one_update_by_hand() -> None:
    known = Assumptions(smoothness=2.0, second_moment=3.0, gap=5.0)
    update: dict[str, Any] = {"step": 0.1, "gradient_squared": 4.0}
    assert one_step_bound(known, [1, 0], proof="published", **update) == pytest.approx(
        -0.2 + 0.01 * 2 * 54
    )
    # step^2 L M / 2 = 0.03, step^3 L^2 V / 2 = 0.006
    assert one_step_bound(known, [1, 0], **update) == pytest.approx(-0.2 + 0.036)
    assert one_step_bound(known, [1, 0], sigma=2.0, **update) == pytest.approx(-0.1 + 0.036)


@pytest.mark.parametrize("proof", ["published", "blockwise"])
def test_a_step_above_one_over_l_is_refused_where_the_proof_needs_it(proof: Proof) -> None:
    known = Assumptions(smoothness=2.0, second_moment=1.0, gap=1.0)
    message = r"must not exceed 1 .iteration: 0, step: 0.6, smoothness: 2.0.; lower the step to 0.5"
    with pytest.raises(ValueError, match=message):
        fixed_step_bound(known, [0], step=0.6, iterations=9, proof=proof)
    with pytest.raises(ValueError, match=message):
        one_step_bound(known, [0], step=0.6, gradient_squared=1.0, proof=proof)
    with pytest.raises(ValueError, match="must not rise .iteration: 1, step: 0.2, before: 0.1"):
        diminishing_step_bound(known, [0], [0.1, 0.2], proof=proof)
    assert fixed_step_bound(known, [0], step=0.6, iterations=9) > 0
    assert diminishing_step_bound(known, [0], [0.1, 0.2]) > 0


@pytest.mark.parametrize("iterations", [0, -3])
def test_no_iterations_are_refused(iterations: int) -> None:
    known = Assumptions(smoothness=2.0, second_moment=1.0, gap=1.0)
    with pytest.raises(ValueError, match=f"at least one iteration .iterations: {iterations}"):
        fixed_step_bound(known, [0], step=0.1, iterations=iterations)
    with pytest.raises(ValueError, match="at least one iteration"):
        diminishing_step_bound(known, [0], [])
