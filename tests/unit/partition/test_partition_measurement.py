import copy

import pytest
import torch
from sleeping import Sleep
from torch import nn

from delaygrad.errors import PartitionError
from delaygrad.partition import measure, measurement


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    monkeypatch.setattr(measurement, "MAX_REPEATS", 3)


class Fork(nn.Module):
    def forward(self, input):
        return {"a": input * 2, "b": (input, torch.arange(3))}


class Join(nn.Module):
    def forward(self, input):
        return input["a"] + input["b"][0]


class Return(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, input):
        return self.value


def snapshot(model):
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    grads = {name: p.grad for name, p in model.named_parameters()}
    return (
        {name: (id(t), t._version, t.detach().clone()) for name, t in tensors.items()},
        {name: None if g is None else (id(g), g._version, g.clone()) for name, g in grads.items()},
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )


def assert_same(left, right):
    assert left[2:] == right[2:]
    for before, after in zip(left[:2], right[:2], strict=True):
        assert before.keys() == after.keys()
        for name in before:
            if before[name] is None:
                assert after[name] is None
            else:
                assert before[name][:2] == after[name][:2]
                assert torch.equal(before[name][2], after[name][2])


def test_measuring_disturbs_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Flatten(),
        nn.Linear(4 * 36, 2),
    )
    model[0].weight.requires_grad_(False)
    model[1][2].eval()
    inputs = torch.randn(5, 3, 8, 8)
    model(inputs).sum().backward()
    model[3].bias.grad = None
    before, inputs_before = snapshot(model), inputs.clone()
    rng_before = torch.get_rng_state()

    costs = measure(model, inputs)

    assert torch.equal(torch.get_rng_state(), rng_before)
    assert_same(before, snapshot(model))
    assert torch.equal(inputs, inputs_before) and inputs.grad is None and inputs._version == 0
    assert [cost.name for cost in costs] == ["0", "1.0", "1.1", "1.2", "2", "3"]
    assert [cost.parameter_bytes for cost in costs] == [448, 32, 0, 0, 0, 1160]
    assert [cost.output_bytes for cost in costs] == [2880] * 5 + [40]
    assert all(cost.forward_s > 0 and cost.backward_s > 0 for cost in costs)


def test_inputs_that_need_gradients_or_meet_an_in_place_layer_first_stay_as_they_are():
    inputs = torch.full((2, 2), -1.0, requires_grad=True)
    measure(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), inputs)
    assert inputs.grad is None and inputs._version == 0
    plain = torch.full((2, 2), -1.0)
    measure(nn.Sequential(nn.ReLU(inplace=True)), plain)
    assert plain._version == 0


def test_sleeping_layers_cost_what_they_sleep():
    model = nn.Sequential(nn.Linear(2, 2), Sleep(0.02, 0.0), Sleep(0.0, 0.04), Sleep(0.01, 0.01))
    _, first, second, third = measure(model, torch.ones(1, 2))
    assert 0.02 <= first.forward_s < 0.04 and first.backward_s < 0.01
    assert second.forward_s < 0.01 and 0.04 <= second.backward_s < 0.08
    assert 0.01 <= third.forward_s < 0.03 and 0.01 <= third.backward_s < 0.03


def test_in_place_layers_run_backward_on_every_repeat():
    calls = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input):
            ctx.mark_dirty(input)
            return input.mul_(2)

        @staticmethod
        def backward(ctx, grad_output):
            calls.append(grad_output.tolist())
            return grad_output * 2

    class DoubleInPlace(nn.Module):
        def forward(self, input):
            return Double.apply(input)

    measure(nn.Sequential(nn.Linear(2, 2), DoubleInPlace()), torch.ones(1, 2))
    assert calls == [[[1.0, 1.0]]] * (1 + 3)  # the pass that counts bytes runs none


def test_frozen_layers_at_the_front_cost_no_backward():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh())
    model[0].requires_grad_(False)
    assert [cost.backward_s > 0 for cost in measure(model, torch.ones(1, 2))] == [
        False,
        False,
        True,
        True,
    ]


def test_integer_inputs_and_nested_activations_pass():
    model = nn.Sequential(nn.Embedding(5, 4), Fork(), Join(), nn.LSTM(4, 2))
    costs = measure(model, torch.tensor([[0, 4, 2]]))
    assert [cost.output_bytes for cost in costs] == [48, 48 + 48 + 24, 48, 24 + 2 * 24]


def test_tuples_reach_the_first_layer_as_one_value():
    costs = measure(nn.Sequential(nn.Flatten(0), Fork(), Join()), torch.ones(2, 2))
    assert len(costs) == 3
    both = {"a": torch.ones(2), "b": (torch.ones(2),)}
    assert len(measure(nn.Sequential(Join(), nn.Linear(2, 1)), both)) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_backward_is_measured_whatever_the_callers_grad_mode(mode):
    model = nn.Sequential(nn.Linear(2, 2))
    with mode():
        (cost,) = measure(model, torch.ones(1, 2))
        assert not torch.is_grad_enabled()
    assert cost.backward_s > 0


def test_lazy_layers_stay_lazy():
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    costs = measure(model, torch.ones(1, 2))
    assert costs[0].parameter_bytes == 4 * (6 + 3)
    assert isinstance(model[0].weight, nn.UninitializedParameter)


def test_heavy_networks_get_three_repeats(monkeypatch):
    monkeypatch.setattr(measurement, "MAX_REPEATS", 30)
    monkeypatch.setattr(measurement, "LAYERS_BUDGET_S", 0.0)
    calls = []
    model = nn.Sequential(nn.Identity())
    model[0].register_forward_hook(lambda module, args, output: calls.append(1))
    measure(model, torch.ones(1))
    assert len(calls) == 2 + 3  # one counts bytes, one warms up


def test_failing_layer_is_named_with_its_input_and_cause():
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(7, 2)))
    with pytest.raises(PartitionError, match=r"layer '1\.1' .*Linear.*float32 \[5, 3\]") as caught:
        measure(model, torch.ones(5, 4))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_failing_backward_is_named():
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input):
            return input * 1

        @staticmethod
        def backward(ctx, grad_output):
            raise ArithmeticError("planted")

    class Layer(nn.Module):
        def forward(self, input):
            return Failing.apply(input)

    with pytest.raises(PartitionError, match="backward of layer '1'.*planted"):
        measure(nn.Sequential(nn.Linear(2, 2), Layer()), torch.ones(1, 2))


@pytest.mark.parametrize("value", [3, "text", [3]])
def test_outputs_that_are_no_tensors_are_refused(value):
    with pytest.raises(PartitionError, match=r"output of layer '0' .*of type (int|str)"):
        measure(nn.Sequential(Return(value)), torch.ones(1))


def test_inputs_that_are_no_tensors_are_refused():
    with pytest.raises(PartitionError, match=r"sample_inputs cannot .*of type int"):
        measure(nn.Sequential(nn.ReLU()), 3)


def test_model_that_cannot_be_copied_is_refused():
    class Stubborn(nn.ReLU):
        def __deepcopy__(self, memo):
            raise copy.Error("planted")

    with pytest.raises(PartitionError, match="cannot be copied.*planted.*pass cuts"):
        measure(nn.Sequential(Stubborn()), torch.ones(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_times_and_random_state():
    model = nn.Sequential(nn.Linear(4096, 4096), nn.Dropout(), nn.Linear(4096, 1)).cuda()
    inputs = torch.randn(4096, 4096, device="cuda")
    rng_before = torch.cuda.get_rng_state()
    heavy, _, light = measure(model, inputs)
    assert torch.equal(torch.cuda.get_rng_state(), rng_before)
    assert heavy.forward_s > 2 * light.forward_s
