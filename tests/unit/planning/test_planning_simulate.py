import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delaygrad.methods import BP, DDG
from delaygrad.partition.costs import Seconds
from delaygrad.planning.link import Link
from delaygrad.planning.simulate import Boundary, iteration_s

NOTHING = Boundary(activation_bytes=0, gradient_bytes=0)


def iteration(stages, method, latency_s=0.0, boundary=NOTHING, bandwidth=1e9):
    return iteration_s(
        stages,
        method.schedule,
        boundaries=[boundary] * (len(stages) - 1),
        link=Link(bandwidth_bytes_per_s=bandwidth, latency_s=latency_s),
    )


def uniform(num_stages, forward_s=1.0, backward_s=2.0, update_s=0.0):
    return [Seconds(forward_s=forward_s, backward_s=backward_s, update_s=update_s)] * num_stages


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=7))
def test_without_a_link_the_slowest_stage_sets_the_iteration(times):
    stages = [Seconds(forward_s=f, backward_s=b, update_s=u) for f, b, u in times]
    slowest = max(stage.total_s for stage in stages)
    for slack in (0, 2):
        assert iteration(stages, DDG(slack=slack)) == pytest.approx(slowest, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7))
def test_backpropagation_takes_all_stages_in_turn(times):
    stages = [Seconds(forward_s=f, backward_s=b) for f, b in times]
    hop_s = 0.5
    expected = sum(stage.total_s for stage in stages) + 2 * hop_s * (len(stages) - 1)
    assert iteration(stages, BP(), hop_s) == pytest.approx(expected)


@pytest.mark.parametrize("num_stages", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("slack", [0, 1, 2])
@pytest.mark.parametrize("hop_s", [0.3, 1.0, 3.0])
def test_exposed_hops_follow_the_longest_loop(num_stages, slack, hop_s):
    # Over m boundaries and back: m+1 stages' work and 2m hops in 1 + m (1 + slack) iterations.
    loops = [((m + 1) * 3.0 + 2 * m * hop_s) / (1 + m * (1 + slack)) for m in range(1, num_stages)]
    expected = max(3.0, *loops)
    assert iteration(uniform(num_stages), DDG(slack=slack), hop_s) == pytest.approx(
        expected, rel=5e-3
    )
    if 2 * hop_s <= slack * 3.0:
        assert expected == 3.0  # hidden


def test_two_stages_expose_one_hop_and_many_stages_nearly_two():
    assert iteration(uniform(2), DDG(), 0.5) == pytest.approx(3.5)
    assert 3.9 < iteration(uniform(16), DDG(), 0.5) < 4.0


def test_messages_of_one_direction_follow_each_other():
    boundary = Boundary(activation_bytes=700, gradient_bytes=100)
    time = iteration(uniform(2), DDG(slack=2), boundary=boundary, bandwidth=100)
    assert time == pytest.approx(7.0)  # 700 bytes an iteration over 100 bytes per second


def test_micro_batches_update_once():
    stages = uniform(2, update_s=1.0)
    assert iteration(stages, DDG(micro_batches=4, slack=3)) == pytest.approx(4.0, rel=0.01)
    assert iteration(stages, BP(micro_batches=3)) == pytest.approx(6.0 + 1.0, rel=0.01)
