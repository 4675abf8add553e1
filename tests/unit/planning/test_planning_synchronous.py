"""Synchronous pipelines: the bubbles that the literature gives, and what links add."""

from __future__ import annotations

import pytest

from delaygrad.partition.costs import Seconds
from delaygrad.planning.link import Link
from delaygrad.planning.simulate import Boundary
from delaygrad.planning.synchronous import SYNCHRONOUS

F1B, INTERLEAVED, ZERO_BUBBLE = SYNCHRONOUS


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5, 8, 16])
def test_uniform_stages_have_the_known_bubbles(num_stages: int) -> None:
    stages = [Seconds(forward_s=1.0, backward_s=2.0, update_s=0.5)] * num_stages
    gaps = num_stages - 1
    for count in (1, num_stages, 2 * num_stages, 4 * num_stages):
        assert F1B.iteration_s(stages, count) == pytest.approx(3 * (count + gaps) / count + 0.5)
        if INTERLEAVED.takes(num_stages, count):
            expected = 3 * (1 + gaps / count / 2) + 0.5
            assert INTERLEAVED.iteration_s(stages, count) == pytest.approx(expected)
        without_bubble = ZERO_BUBBLE.iteration_s(stages, count) == pytest.approx(3.5)
        assert without_bubble == (count >= 2 * num_stages or num_stages == 1), count
    assert INTERLEAVED.takes(num_stages, num_stages + 1) == (num_stages == 1)


def test_no_schedule_beats_the_busiest_stage_or_the_path_of_a_micro_batch() -> None:
    stages = [
        Seconds(forward_s=0.1 * (3 + 7 * k % 5), backward_s=0.1 * (2 + 5 * k % 7)) for k in range(4)
    ]
    work = max(stage.total_s for stage in stages)
    for schedule in SYNCHRONOUS:
        times = [schedule.iteration_s(stages, count) for count in (4, 8, 16)]
        halves = schedule.pieces > 1  # other stages share a rank, so the work is shared anew
        assert all(time >= work * (1 - 1e-9) for time in times) or halves
        assert times == sorted(times, reverse=True)
    assert F1B.iteration_s(stages, 1) == pytest.approx(sum(stage.total_s for stage in stages))


def test_a_link_adds_its_latency_both_ways_and_occupies_its_sender() -> None:
    stages = [Seconds(forward_s=1.0, backward_s=1.0)] * 2
    boundary = [Boundary(activation_bytes=30.0, gradient_bytes=10.0)]
    link = Link(bandwidth_bytes_per_s=10.0, latency_s=0.25)
    expected = 4.0 + 2 * 0.25 + 3.0 + 1.0
    found = F1B.iteration_s(stages, 1, boundaries=boundary, link=link)
    assert found == pytest.approx(expected)
    slow = Link(bandwidth_bytes_per_s=1.0, latency_s=0.0)  # 30 s to send what 2 s compute
    for schedule in SYNCHRONOUS:
        assert schedule.iteration_s(stages, 4, boundaries=boundary, link=slow) > 30.0
