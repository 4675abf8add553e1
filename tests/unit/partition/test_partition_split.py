import importlib
import inspect
import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from delaygrad.errors import PartitionError
from delaygrad.partition import LayerCost, cuts_of, layer_names, split
from delaygrad.partition.costs import stages_of

splitting = importlib.import_module("delaygrad.partition.split")  # the name is the function's


class PlantedMeasurement:
    """Measures what was planted, of layers as of stages."""

    def __init__(self, names, seconds):
        self.costs = [
            LayerCost(name=name, forward_s=cost / 3, backward_s=cost * 2 / 3)
            for name, cost in zip(names, seconds, strict=True)
        ]

    def layers(self):
        return self.costs

    def stages(self, cuts):
        return stages_of(self.costs, cuts)


def plant_costs(monkeypatch, seconds):
    @contextmanager
    def planted(model, sample_inputs, *, make_optimizer=None):
        yield PlantedMeasurement(layer_names(model), seconds)

    monkeypatch.setattr(splitting, "measuring", planted)


def network():
    return nn.Sequential(
        nn.Linear(3, 4),
        nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 4))),
        nn.Linear(4, 2),
    )


def test_stages_hold_the_same_modules_under_the_same_names():
    model = network()
    before = {name: id(module) for name, module in model.named_modules()}
    stages = split(model, 3, cuts=["1.1", "1.2.1"])

    assert [layer_names(stage) for stage in stages] == [
        ["0", "1.0"],
        ["1.1", "1.2.0"],
        ["1.2.1", "2"],
    ]
    assert all(type(stage) is nn.Sequential for stage in stages)
    for stage in stages:
        for name in layer_names(stage):
            assert stage.get_submodule(name) is model.get_submodule(name)
        for name, parameter in stage.named_parameters():
            assert parameter is model.get_parameter(name)
    keys = [key for stage in stages for key in stage.state_dict()]
    assert keys == list(model.state_dict())
    assert {name: id(module) for name, module in model.named_modules()} == before
    x = torch.randn(2, 3)
    assert torch.equal(stages[2](stages[1](stages[0](x))), model(x))


def test_whole_containers_are_kept_and_cut_ones_keep_their_mode():
    model = network()
    model[1].eval()
    model.training = True
    stages = split(model, 2, cuts=["1.2"])
    assert stages[1][0][0] is model[1][2]
    assert [stage.training for stage in stages] == [True, True]
    assert [stage.get_submodule("1").training for stage in stages] == [False, False]


def test_one_stage_needs_neither_inputs_nor_cuts():
    model = network()
    (stage,) = split(model, 1)
    assert stage is not model and list(stage) == list(model)
    assert list(split(model, 1, sample_inputs=torch.ones(1, 3))[0]) == list(model)
    assert list(split(model, 1, cuts=[])[0]) == list(model)


def test_planted_costs_give_literal_cuts(monkeypatch):
    plant_costs(monkeypatch, [2, 3, 4, 5, 1, 6])
    model = network()
    assert layer_names(model) == ["0", "1.0", "1.1", "1.2.0", "1.2.1", "2"]
    x = torch.ones(1, 3)
    assert cuts_of(split(model, 2, sample_inputs=x)) == ["1.2.0"]
    assert cuts_of(split(model, 3, sample_inputs=x)) == ["1.2.0", "2"]
    assert cuts_of(split(model, 6, sample_inputs=x)) == layer_names(model)[1:]


def test_measured_split_runs_as_the_model_does():
    model = network()
    x = torch.randn(5, 3)
    stages = split(model, 3, sample_inputs=x)
    out = x
    for stage in stages:
        out = stage(out)
    assert torch.equal(out, model(x))


def test_the_optimizer_counts(monkeypatch):
    class SlowSGD(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(0.01 * sum(len(group["params"]) for group in self.param_groups))
            return super().step(closure)

    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(6)))
    x = torch.ones(1, 2)
    stages = split(model, 3, sample_inputs=x, make_optimizer=lambda params: SlowSGD(params, lr=1))
    assert cuts_of(stages) == ["2", "4"]


def test_balancing_keeps_tied_layers_together(monkeypatch):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    model[3].weight = model[1].weight
    plant_costs(monkeypatch, [1, 1, 1, 1, 1, 1])
    x = torch.ones(1, 2)
    assert cuts_of(split(model, 2, sample_inputs=x)) == ["4"]
    assert cuts_of(split(model, 4, sample_inputs=x)) == ["1", "4", "5"]
    with pytest.raises(
        PartitionError, match=r"stages: 5, groups.*: 4, shared: '1\.weight' and '3\.weight'"
    ):
        split(model, 5, sample_inputs=x)


def test_reused_layer_without_parameters_may_cross_stages():
    relu = nn.ReLU()
    stages = split(nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu), 2, cuts=["2"])
    assert stages[0][1] is stages[1][1]


def test_tied_weights_across_cuts_are_refused():
    model = nn.Sequential(nn.Embedding(3, 2), nn.ReLU(), nn.Linear(2, 3))
    model[2].weight = model[0].weight
    with pytest.raises(
        PartitionError, match=r"parameter .*'0\.weight' in stage 0, '2\.weight' in stage 1.*untie"
    ):
        split(model, 2, cuts=["1"])
    assert len(split(model, 1)) == 1


def test_shared_buffers_across_cuts_are_refused():
    norm = nn.BatchNorm1d(2, affine=False)
    with pytest.raises(PartitionError, match=r"buffer .*'0\.running_mean' in stage 0"):
        split(nn.Sequential(norm, norm), 2, cuts=[1])


@pytest.mark.parametrize(
    ("num_stages", "options", "message"),
    [
        (0, {"cuts": []}, "stages: 0"),
        (-3, {}, "stages: -3"),
        (7, {"sample_inputs": torch.ones(1, 3)}, "stages: 7, layers: 6"),
        (2, {}, "pass sample_inputs .* or cuts"),
        (3, {"cuts": ["2"]}, "cuts: 1, stages: 3"),
        (2, {"cuts": ["1.7"]}, r"'1\.7', closest: '1\.[012]'"),
        (2, {"sample_inputs": torch.ones(1, 5)}, r"layer '0' failed .*float32 \[1, 5\]"),
    ],
)
def test_wrong_requests_are_refused(num_stages, options, message):
    with pytest.raises(PartitionError, match=message):
        split(network(), num_stages, **options)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"num_stages: 2\.0"):
        split(network(), 2.0)
    with pytest.raises(PartitionError, match="type: Linear"):
        split(nn.Linear(2, 2), 1)


def test_user_call_stays_as_documented():
    parameters = inspect.signature(split).parameters
    own = ["model", "num_stages", "sample_inputs", "cuts", "blocks", "make_optimizer"]
    own += ["recompute", "compile"]
    assert list(parameters) == own
