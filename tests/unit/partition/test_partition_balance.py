from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delaygrad.errors import PartitionError
from delaygrad.partition import balance


def stage_costs(costs, cuts):
    return [sum(costs[i:j]) for i, j in pairwise([0, *cuts, len(costs)])]


def brute_force(costs, num_stages):
    def rank(cuts):
        stages = stage_costs(costs, cuts)
        return max(stages), sum(cost**2 for cost in stages), cuts

    return list(min(combinations(range(1, len(costs)), num_stages - 1), key=rank))


@given(st.data(), st.lists(st.integers(0, 12), min_size=1, max_size=9))
def test_whole_costs_are_cut_exactly_as_by_brute_force(data, costs):
    num_stages = data.draw(st.integers(1, len(costs)))
    assert balance(costs, num_stages) == brute_force(costs, num_stages)


@given(st.data(), st.lists(st.floats(0, 1e3), min_size=1, max_size=9))
def test_float_costs_reach_the_smallest_maximum(data, costs):
    num_stages = data.draw(st.integers(1, len(costs)))
    cuts = balance(costs, num_stages)
    assert all(i < j for i, j in pairwise([0, *cuts, len(costs)]))
    best = max(stage_costs(costs, brute_force(costs, num_stages)))
    assert max(stage_costs(costs, cuts)) == pytest.approx(best, rel=1e-12, abs=1e-9)


def test_literal_cuts():
    assert balance([1, 1, 1, 1], 2) == [2]
    assert balance([9, 1, 1, 1], 3) == [1, 2]
    assert balance([1, 1, 1, 9], 3) == [1, 3]
    assert balance([0, 0, 0], 3) == [1, 2]
    assert balance([5], 1) == []


def test_a_thousand_layers_are_quick():
    cuts = balance([1.0] * 1024, 32)
    assert cuts == [32 * k for k in range(1, 32)]


@pytest.mark.parametrize(
    ("costs", "num_stages", "message"),
    [
        ([1.0, 2.0], 0, "stages: 0"),
        ([1.0, 2.0], 3, "stages: 3, layers: 2"),
        ([1.0, -2.0], 1, r"index: 1, cost: -2\.0"),
        ([float("nan"), 2.0], 1, "index: 0, cost: nan"),
        ([float("inf")], 1, "cost: inf"),
    ],
)
def test_impossible_requests_are_refused(costs, num_stages, message):
    with pytest.raises(PartitionError, match=message):
        balance(costs, num_stages)
