from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delaygrad.errors import PartitionError
from delaygrad.partition.balance import balance, least_cap


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
    assert balance([costs] * num_stages) == brute_force(costs, num_stages)


@given(st.data(), st.lists(st.floats(0, 1e3), min_size=1, max_size=9))
def test_float_costs_reach_the_smallest_maximum(data, costs):
    num_stages = data.draw(st.integers(1, len(costs)))
    cuts = balance([costs] * num_stages)
    assert all(i < j for i, j in pairwise([0, *cuts, len(costs)]))
    best = max(stage_costs(costs, brute_force(costs, num_stages)))
    assert max(stage_costs(costs, cuts)) == pytest.approx(best, rel=1e-12, abs=1e-9)


def every_cut(num_layers, num_stages):
    return combinations(range(1, num_layers), num_stages - 1)


def of_stages(table, cuts, num_layers):
    return [table(k, i, j) for k, (i, j) in enumerate(pairwise([0, *cuts, num_layers]))]


@st.composite
def instances(draw):
    """Stages with costs of their own, and needs that depend on the stage and its layers."""
    num_layers = draw(st.integers(1, 8))
    num_stages = draw(st.integers(1, num_layers))
    row = st.lists(st.integers(0, 9), min_size=num_layers, max_size=num_layers)
    rows = draw(st.lists(row, min_size=num_stages, max_size=num_stages))
    weights = draw(row)
    ends = draw(row)

    def need(k, i, j):  # may fall where a layer joins, as the output of a stage does
        return (num_stages - k) * sum(weights[i:j]) + 3 * ends[j - 1]

    return rows, need


@given(instances(), st.integers(0, 200))
def test_costs_and_needs_of_stages_are_met_exactly_as_by_brute_force(instance, cap):
    rows, need = instance
    num_layers, num_stages = len(rows[0]), len(rows)

    def rank(cuts):
        times = of_stages(lambda k, i, j: sum(rows[k][i:j]), cuts, num_layers)
        return max(times), sum(time**2 for time in times), cuts

    within = [
        cuts
        for cuts in every_cut(num_layers, num_stages)
        if max(of_stages(need, cuts, num_layers)) <= cap
    ]
    fits = lambda k, i, j: need(k, i, j) <= cap  # noqa: E731
    if within:
        assert balance(rows, fits=fits) == list(min(within, key=rank))
    else:
        with pytest.raises(PartitionError, match=f"stages: {num_stages}, layers: {num_layers}"):
            balance(rows, fits=fits)


@given(instances())
def test_least_cap_is_that_of_brute_force(instance):
    rows, need = instance
    num_layers, num_stages = len(rows[0]), len(rows)
    largest, cuts = least_cap(num_layers, num_stages, need)
    assert max(of_stages(need, cuts, num_layers)) == largest
    assert largest == min(
        max(of_stages(need, cuts, num_layers)) for cuts in every_cut(num_layers, num_stages)
    )


def test_literal_cuts():
    assert balance([[1, 1, 1, 1]] * 2) == [2]
    assert balance([[9, 1, 1, 1]] * 3) == [1, 2]
    assert balance([[1, 1, 1, 9]] * 3) == [1, 3]
    assert balance([[0, 0, 0]] * 3) == [1, 2]
    assert balance([[5]]) == []


def test_a_thousand_layers_are_quick():
    cuts = balance([[1.0] * 1024] * 32)
    assert cuts == [32 * k for k in range(1, 32)]


@pytest.mark.parametrize(
    ("costs", "num_stages", "message"),
    [
        ([1.0, 2.0], 3, "stages: 3, layers: 2"),
        ([1.0, -2.0], 1, r"index: 1, cost: -2\.0"),
        ([float("nan"), 2.0], 1, "index: 0, cost: nan"),
        ([float("inf")], 1, "cost: inf"),
    ],
)
def test_impossible_requests_are_refused(costs, num_stages, message):
    with pytest.raises(PartitionError, match=message):
        balance([costs] * num_stages)
