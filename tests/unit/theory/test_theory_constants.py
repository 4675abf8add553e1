"""sigma, M_K and what is stale, in literal values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import delaygrad as dg
from delaygrad.theory import (
    Assumptions,
    Proof,
    effective_moment,
    sigma,
    staleness_moment,
)

PLAIN = Assumptions(smoothness=1.0, second_moment=3.0, gap=1.0)


def delays(num_stages: int, **options: int) -> list[int]:
    schedule = dg.DDG(**options).schedule
    return [schedule.delay(k, num_stages) for k in range(num_stages)]


def squares(delays: list[int]) -> int:
    return sum(delay**2 for delay in delays)


def test_sigma_is_the_largest_fall_within_the_delay() -> None:
    steps = [1.0, 1.0, 0.9, 0.3, 0.3, 0.2]
    assert sigma(steps, 0) == 1
    assert sigma(steps, 1) == pytest.approx(3.0)  # 0.9 to 0.3
    assert sigma(steps, 2) == pytest.approx(1 / 0.3)
    assert sigma(steps, 99) == pytest.approx(5.0)  # nothing is older than iteration 0
    assert sigma([0.1] * 4, 3) == 1


def test_squares_of_ddgs_delays_are_about_a_third_of_k_cubed() -> None:
    for num_stages in (1, 2, 3, 8, 32):
        k = num_stages
        assert squares(delays(k)) == (k - 1) * k * (2 * k - 1) // 6 <= k**3 / 3
    assert squares(delays(8, slack=1)) == 4 * squares(delays(8))
    assert squares(delays(8, micro_batches=7)) == 7  # one update, on all stages but the last


def test_m_k_of_the_paper() -> None:
    assert [effective_moment(PLAIN, delays(k), proof="published") for k in (1, 2, 4)] == [
        3 * (1 + 1),
        3 * (2 + 16),
        3 * (4 + 256),
    ]
    assert effective_moment(PLAIN, delays(2), sigma=1.5, proof="published") == 3 * (2 + 24)


def test_m_k_of_the_argument_block_by_block() -> None:
    assert effective_moment(PLAIN, [0], proof="blockwise") == 1.5
    expected = 3 * 3 * (1 + 2 * (5 + 2 * math.sqrt(5))) / 2
    assert effective_moment(PLAIN, [2, 1, 0], sigma=2.0, proof="blockwise") == pytest.approx(
        expected, rel=1e-15
    )


def test_m_k_over_virtual_iterates_knows_the_largest_delay_only() -> None:
    assert effective_moment(PLAIN, [0]) == 1.5
    assert effective_moment(PLAIN, [3, 2, 1, 0]) == effective_moment(PLAIN, [3, 3, 3, 3]) == 15
    assert effective_moment(PLAIN, [1, 1, 1, 0]) == 3


def test_known_blocks_count_their_own_delay() -> None:
    known = Assumptions(
        smoothness=1.0, second_moment=3.0, gap=1.0, stage_moments=(1.0, 0.5, 0.25, 0.25)
    )
    assert staleness_moment(known, [3, 2, 1, 0]) == 9 * 1.0 + 4 * 0.5 + 1 * 0.25
    loose = Assumptions(smoothness=1.0, second_moment=3.0, gap=1.0, stage_moments=(3.0,) * 4)
    assert staleness_moment(loose, [3, 2, 2, 2]) == 27  # D^2 M is less than 9 + 3 * 4 times M
    with pytest.raises(ValueError, match="one number per stage .stage_moments: 4, delays: 2"):
        staleness_moment(known, [1, 0])


@given(st.integers(1, 40), st.floats(1, 50))
def test_each_argument_improves_on_the_one_before(num_stages: int, ratio: float) -> None:
    published, blockwise, virtual = (
        effective_moment(PLAIN, delays(num_stages), sigma=ratio, proof=proof)
        for proof in ("published", "blockwise", "virtual")
    )
    assert virtual <= blockwise <= published


@pytest.mark.parametrize(
    ("given_delays", "options", "message"),
    [
        ([], {}, "delays must hold one number per stage"),
        ([1, -1], {}, "a delay is a whole number .*delay: -1"),
        ([1, 0.5], {}, "a delay is a whole number .*delay: 0.5"),
        ([0], {"sigma": 0.5}, "sigma must be at least 1"),
        ([0], {"proof": "mine"}, "unknown proof .'mine'"),
        ([2, 0], {"proof": "published"}, "delays of at most K-1-k .delays: .2, 0., at most: .1, 0"),
    ],
)
def test_what_no_proof_covers_is_refused(
    given_delays: list[float], options: dict[str, float | Proof], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        effective_moment(PLAIN, given_delays, **options)  # type: ignore[arg-type]


def test_sigma_refuses_a_step_of_zero() -> None:
    with pytest.raises(ValueError, match="step must be positive"):
        sigma([0.1, 0.0], 1)
