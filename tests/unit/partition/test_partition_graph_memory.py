import gc
import weakref

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from delaygrad.models import gpt, mlp, resnet
from delaygrad.partition import measure
from delaygrad.partition.costs import join

BATCH = 2


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    monkeypatch.setattr("delaygrad.partition.measurement.MAX_REPEATS", 3)


def saved(*layers, width=8):
    return measure(nn.Sequential(*layers), torch.ones(BATCH, width))


def test_a_tensor_that_two_layers_keep_counts_once():
    # Linear keeps its input (2 x 8 floats); ReLU its output (2 x 4), which the next Linear keeps
    # too; Tanh its output (2 x 3).
    costs = saved(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh())
    assert [cost.saved_bytes for cost in costs] == [64, 32, 32, 24]
    assert join(costs).saved_bytes == 64 + 32 + 24
    assert join(costs[:2]).saved_bytes == 64 + 32
    assert join(costs[2:]).saved_bytes == 32 + 24  # a stage that begins here has its own copy
    assert [cost.output_bytes for cost in costs] == [32, 32, 24, 24]
    assert [cost.input_bytes for cost in costs] == [64, 32, 32, 24]


def test_views_and_layers_that_keep_nothing_between_them_share_too():
    costs = saved(nn.Tanh(), nn.Flatten(), nn.Identity(), nn.Linear(8, 1))
    assert [cost.saved_bytes for cost in costs] == [0, 0, 0, 64]  # the input wants no gradient
    costs = saved(nn.Linear(8, 8), nn.Tanh(), nn.Flatten(), nn.Identity(), nn.Linear(8, 1))
    assert [cost.saved_bytes for cost in costs] == [64, 64, 0, 0, 64]
    assert join(costs).saved_bytes == 128


def test_in_place_layers_keep_the_memory_of_the_layer_before():
    costs = saved(nn.Linear(8, 4), nn.ReLU(inplace=True))
    assert [cost.saved_bytes for cost in costs] == [64, 32]
    assert set(costs[0].outputs) == set(costs[1].outputs) == set(costs[1].saved)


def test_parameters_and_buffers_do_not_count():
    _, norm, _ = saved(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    assert norm.saved_bytes == 64 + 2 * 32  # its input, the batch's mean and standard deviation
    lazy = saved(nn.LazyLinear(4), nn.LazyLinear(3))
    assert [cost.saved_bytes for cost in lazy] == [64, 32]


def live_bytes_after_forward(model, inputs):
    """What the allocator gave out in the forward and did not get back: an independent count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        outputs = model(inputs)
    events = profiler.profiler.kineto_results.events()
    live = sum(event.nbytes() for event in events if event.name() == "[memory]")
    return live, outputs


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (resnet(14, num_classes=10), torch.ones(4, 3, 16, 16)),
        (
            gpt(vocabulary_size=11, context_length=32, width=32, num_layers=3),
            torch.ones(4, 32, dtype=torch.int64),
        ),
        (mlp(sample_shape=(64,), num_classes=10, width=64, depth=5), torch.ones(32, 64)),
    ],
    ids=["resnet", "gpt", "mlp"],
)
def test_the_sum_is_what_the_allocator_says(model, inputs):
    live, _ = live_bytes_after_forward(model, inputs)
    whole = join(measure(model, inputs))
    kept = {**whole.saved, **whole.outputs}  # the last output lives as well
    predicted = sum(storage.num_bytes for storage in kept.values())
    assert live == predicted - whole.input_bytes  # the input is kept too, but lived before


def test_a_view_keeps_all_of_its_storage():
    class Half(nn.Module):
        def forward(self, x):
            return x[:, :4]

    costs = saved(nn.Linear(8, 8), Half(), nn.Linear(4, 1))
    assert costs[2].saved_bytes == 64
    assert costs[1].output_bytes == 32


def test_a_checkpointed_layer_keeps_its_input_only():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    costs = saved(nn.Linear(8, 8), Checkpointed())
    plain = saved(nn.Linear(8, 8), Checkpointed().inner)
    assert costs[1].saved_bytes == 64 < join(plain[1:]).saved_bytes


def test_frozen_layers_keep_nothing():
    frozen = nn.Linear(8, 4).requires_grad_(False)
    first, second = saved(frozen, nn.Linear(4, 2))
    assert (first.saved_bytes, first.trainable_bytes, first.gradient_bytes) == (0, 0, 0)
    assert first.parameter_bytes == 144 and second.saved_bytes == 32


def test_rounding_halves_matrices_and_spares_statistics():
    _, norm, _ = saved(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    assert sum(storage.rounded_bytes for storage in norm.saved.values()) == 32 + 2 * 32


@pytest.mark.parametrize(
    ("make_optimizer", "copies", "extra"),
    [
        (lambda params: torch.optim.SGD(params, lr=0.1), 0, 0),
        (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9), 1, 0),
        (lambda params: torch.optim.Adam(params, lr=0.1), 2, 2 * 4),  # a step count each
    ],
)
def test_optimizer_state_is_measured(make_optimizer, copies, extra):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    linear, relu = measure(model, torch.ones(BATCH, 8), make_optimizer=make_optimizer)
    assert linear.optimizer_bytes == copies * linear.parameter_bytes + extra
    assert linear.update_s > 0
    assert (relu.optimizer_bytes, relu.update_s) == (0, 0.0)


def test_the_loss_counts_with_the_last_layer():
    def loss(outputs):
        return nn.functional.cross_entropy(outputs, torch.zeros(BATCH, dtype=torch.int64))

    (plain,) = saved(nn.Linear(8, 4))
    (cost,) = measure(nn.Sequential(nn.Linear(8, 4)), torch.ones(BATCH, 8), loss=loss)
    assert cost.name == "0" and cost.output_bytes == 4
    assert cost.saved_bytes >= plain.saved_bytes + BATCH * 4 * 4  # the log-probabilities


def test_measuring_leaves_no_graph_behind():
    # What a hook returns must not be the tensor itself: a cycle through the graph that made it.
    outputs = []

    class Watched(nn.Tanh):
        def forward(self, x):
            y = super().forward(x)
            outputs.append(weakref.ref(y.untyped_storage()))
            return y

    measure(nn.Sequential(nn.Linear(4, 4), Watched(), nn.Linear(4, 2)), torch.ones(3, 4))
    gc.collect()
    assert outputs and not any(watched() for watched in outputs)
