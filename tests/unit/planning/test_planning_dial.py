from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import delaygrad as dg
from delaygrad.methods import DDG, Lookahead
from delaygrad.partition.costs import LayerCost, Seconds
from delaygrad.partition.measurement import measuring
from delaygrad.planning.dial import PartCost, counts_of, part_costs, scaled, with_micro_batches


class Dear:
    """Each micro-batch has a fixed cost of a second, in the second stage of half a second."""

    def of_parts(self, num_parts: int, cuts: object) -> list[Seconds]:
        return [
            Seconds(forward_s=fixed + 3.0 / num_parts, backward_s=fixed + 7.0 / num_parts)
            for fixed in (1.0, 0.5)
        ]


def test_fixed_costs_count_once_for_each_micro_batch() -> None:
    costs = part_costs(Dear(), [1, 4])  # type: ignore[arg-type]
    assert costs == {
        1: [PartCost(forward=1.0, backward=1.0)] * 2,
        4: [
            PartCost(forward=pytest.approx(7 / 4), backward=pytest.approx(11 / 8)),
            PartCost(forward=pytest.approx(5 / 3.5), backward=pytest.approx(9 / 7.5)),
        ],
    }
    stage = LayerCost(name="0", forward_s=4.0, backward_s=8.0, update_s=1.0)
    other = replace(stage, forward_s=3.5, backward_s=7.5)
    assert scaled([stage, other], costs, 1) == [stage, other]
    for count in (2, 4, 3, 64):  # measured or not: a fixed cost for each
        found = scaled([stage, other], costs, count)
        assert [one.forward_s for one in found] == pytest.approx([3 + count, 3 + count / 2])
        assert [one.backward_s for one in found] == pytest.approx([7 + count, 7 + count / 2])
        assert found[0].update_s == 1.0
    assert scaled([stage], {}, 4) == [stage]


def test_parts_that_a_network_does_not_take_are_left_out() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    targets = torch.zeros(8, dtype=torch.int64)
    with measuring(
        net, torch.ones(8, 4), loss=lambda outputs: nn.functional.cross_entropy(outputs, targets)
    ) as measurement:
        assert list(part_costs(measurement, [1, 2, 4, 8, 16])) == [1, 2, 4]


def test_the_dial_goes_past_what_one_update_of_delay_needs() -> None:
    assert counts_of(16, 15) == [1, 2, 4, 8, 15, 16, 32]
    assert counts_of(2, 1) == [1, 2]


@pytest.mark.parametrize("method", [DDG(recompute=True), Lookahead()])
def test_another_m_changes_nothing_else(method: dg.Method) -> None:
    found = with_micro_batches(method, 6)
    assert found.schedule.micro_batches == 6
    assert with_micro_batches(found, 1) == method and found.for_stages(3) == found


def test_a_plan_shows_the_dial_of_each_k() -> None:
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    plan = dg.plan(net, torch.ones(8, 8), num_stages=[1, 4], method=dg.Lookahead())
    alone, four = plan.forecasts
    assert alone.dial == ()
    assert [(row.micro_batches, row.delay) for row in four.dial] == [
        (1, 3), (2, 2), (4, 1), (8, 1)
    ]  # fmt: skip
    assert four.method == "Lookahead(micro_batches=4)"
    memory = [row.memory_bytes for row in four.dial]
    assert memory == sorted(memory, reverse=True)
    (own,) = (row for row in four.dial if row.micro_batches == 4)
    assert own.iteration_s == four.iteration_s and own.speedup == four.speedup
    assert "4 stages: the dial" in str(plan)
