import pytest
import torch
from torch import nn

from delaygrad.errors import PartitionError
from delaygrad.partition import layer_names


class Subclass(nn.Sequential):
    pass


class Residual(nn.Sequential):
    def forward(self, input):
        return input + super().forward(input)


def test_nested_sequentials_and_plain_subclasses_are_opened():
    model = Subclass(nn.ReLU(), nn.Sequential(nn.ReLU(), Subclass(nn.ReLU(), nn.ReLU())), nn.ReLU())
    assert layer_names(model) == ["0", "1.0", "1.1.0", "1.1.1", "2"]


def test_reused_module_is_listed_each_time():
    relu = nn.ReLU()
    assert layer_names(nn.Sequential(relu, relu, nn.Sequential(relu, relu))) == [
        "0",
        "1",
        "2.0",
        "2.1",
    ]


def test_containers_that_do_more_than_call_their_children_stay_one_layer():
    hooked = nn.Sequential(nn.ReLU(), nn.ReLU())
    hooked.register_forward_hook(lambda module, args, output: output)
    scaled = nn.Sequential(nn.ReLU(), nn.ReLU())
    scaled.register_parameter("scale", nn.Parameter(torch.ones(1)))
    patched = nn.Sequential(nn.ReLU(), nn.ReLU())
    patched.forward = lambda input: input
    compiled = nn.Sequential(nn.ReLU(), nn.ReLU())
    compiled.compile(backend="eager")
    empty = nn.Sequential()
    model = nn.Sequential(Residual(nn.ReLU()), hooked, scaled, patched, compiled, empty)
    assert layer_names(model) == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), Residual(nn.Linear(2, 2)), nn.ModuleList()])
def test_other_modules_are_refused_with_what_to_do(model):
    with pytest.raises(PartitionError, match=r"type: \w+.*nn\.Sequential.*by hand"):
        layer_names(model)


def test_models_with_hooks_or_parameters_of_their_own_are_refused():
    model = nn.Sequential(nn.ReLU())
    model.register_forward_hook(lambda module, args, output: output)
    with pytest.raises(PartitionError, match=r"found: forward_hooks"):
        layer_names(model)
    model = nn.Sequential(nn.ReLU())
    model.register_buffer("scale", torch.ones(1))
    with pytest.raises(PartitionError, match=r"found: buffers"):
        layer_names(model)


def test_empty_models_and_missing_layers_are_refused():
    with pytest.raises(PartitionError, match="layers: 0"):
        layer_names(nn.Sequential())
    model = nn.Sequential(nn.Sequential(nn.ReLU()))
    model[0].register_module("gone", None)
    with pytest.raises(PartitionError, match=r"layer is None \(layer: '0\.gone'\)"):
        layer_names(model)
