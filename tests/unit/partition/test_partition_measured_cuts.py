from itertools import pairwise

import pytest
import torch
from sleeping import Sleep
from torch import nn

from delaygrad.partition import measured_cuts as cutting
from delaygrad.partition.costs import LayerCost, Seconds, rescaled
from delaygrad.partition.measured_cuts import measured_cuts
from delaygrad.partition.measurement import measuring


class PlantedMeasurement:
    """Stages that take what their layers take, in truth; ``measured`` says which were timed."""

    def __init__(self, truth):
        self.truth, self.measured = truth, []

    def stages(self, cuts):
        self.measured.append(list(cuts))
        bounds = pairwise([0, *cuts, len(self.truth)])
        totals = [sum(self.truth[i:j]) for i, j in bounds]
        return [Seconds(forward_s=total / 4, backward_s=total * 3 / 4) for total in totals]


def layers(seconds):
    return [
        LayerCost(name=str(i), forward_s=s / 4, backward_s=s * 3 / 4) for i, s in enumerate(seconds)
    ]


def test_wrong_costs_of_layers_are_corrected_by_those_of_stages():
    # Timed alone, the first half of the layers looked cheap.
    planted = PlantedMeasurement([2.0] * 4 + [1.0] * 8)
    found = measured_cuts(planted, layers([1.0] * 12), 2)
    assert planted.measured[0] == [6]
    assert found.cuts == [4] and found.slowest_s == 8.0
    assert len(planted.measured) <= cutting.MAX_ROUNDS


def test_the_best_that_was_measured_is_taken():
    class Capricious(PlantedMeasurement):
        def stages(self, cuts):
            seconds = super().stages(cuts)
            # The second proposal is slower than it promised.
            slower = len(self.measured) > 1
            return [Seconds(forward_s=9.0, backward_s=9.0) for _ in seconds] if slower else seconds

    planted = Capricious([2.0] * 4 + [1.0] * 8)
    assert measured_cuts(planted, layers([1.0] * 12), 2).cuts == [6]
    assert len(planted.measured) > 1


def test_right_costs_need_one_round():
    planted = PlantedMeasurement([1.0] * 6)
    assert measured_cuts(planted, layers([1.0] * 6), 3).cuts == [2, 4]
    assert planted.measured == [[2, 4]]


def test_a_large_network_gets_two_rounds(monkeypatch):
    monkeypatch.setattr(cutting, "BUDGET_S", 0.0)
    planted = PlantedMeasurement([5.0, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 9.0])
    measured_cuts(planted, layers([1.0] * 8), 2)
    assert len(planted.measured) == 2


def test_groups_speeds_recomputation_and_limits_are_kept_to():
    planted = PlantedMeasurement([1.0] * 6)
    costs = layers([1.0] * 6)
    assert measured_cuts(planted, costs, 2, groups=[0, 4, 5]).cuts == [4]
    found = measured_cuts(planted, costs, 2, speeds=[1.0, 0.5])
    assert found.cuts == [4] and found.slowest_s == 4.0
    # Forward twice: 1.25 per layer on stage 0.
    nine = PlantedMeasurement([1.0] * 9)
    assert measured_cuts(nine, layers([1.0] * 9), 2, again=[True, False]).cuts == [4]
    fits = lambda k, i, j: j - i <= (1, 5)[k]  # noqa: E731
    assert measured_cuts(planted, costs, 2, fits=fits).cuts == [1]


def test_rescaling_keeps_proportions_and_leaves_zeros():
    costs = layers([1.0, 3.0, 0.0])
    first, second, third = rescaled(
        costs, [2], [Seconds(forward_s=2.0, backward_s=6.0), Seconds(forward_s=1.0, backward_s=1.0)]
    )
    assert (first.total_s, second.total_s, third.total_s) == (2.0, 6.0, 0.0)


def test_sleeping_stages_take_what_their_layers_sleep(monkeypatch):
    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)
    model = nn.Sequential(
        nn.Linear(2, 2), Sleep(0.01, 0.02), Sleep(0.01, 0.02), Sleep(0.02, 0.04), nn.Linear(2, 2)
    )
    with measuring(model, torch.ones(1, 2)) as measurement:
        found = measured_cuts(measurement, measurement.layers(), 2)
        inputs = measurement.stage_inputs(found.cuts)
    assert found.cuts == [3]
    for stage in found.stages:
        assert 0.02 <= stage.forward_s < 0.04 and 0.04 <= stage.backward_s < 0.08
    assert 0.06 <= found.slowest_s < 0.12
    assert [tensor.requires_grad for tensor in inputs] == [False, True]


def test_delayed_stages_pay_for_the_copy_of_their_parameters():
    moved = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            moved.append([p.data_ptr() for group in self.param_groups for p in group["params"]])
            return super().step(closure)

    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    before = [p.detach().clone() for p in model.parameters()]
    with measuring(
        model, torch.ones(1, 4), make_optimizer=lambda params: Watched(params, lr=0.1)
    ) as measurement:
        measurement.stages([1])
    first, second = moved[0::2], moved[1::2]
    assert len({place for (place,) in second}) == 1
    assert len({place for (place,) in first}) > 1
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


@pytest.mark.parametrize("num_stages", [1, 3])
def test_every_layer_may_be_a_stage(num_stages):
    planted = PlantedMeasurement([1.0] * 3)
    assert measured_cuts(planted, layers([1.0] * 3), num_stages).cuts == list(range(1, num_stages))
