"""Time the forward, the backward and the update of every layer; disturb nothing of the user's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.boundary import Tree
from delaygrad.errors import PartitionError
from delaygrad.partition.costs import LayerCost
from delaygrad.partition.layers import Layer, list_layers
from delaygrad.partition.probe import MakeOptimizer, Probe, map_tensors, tensors_of

__all__ = ["measure", "probing"]


def measure(
    model: nn.Module,
    sample_inputs: Tree,
    *,
    make_optimizer: MakeOptimizer | None = None,
    loss: Callable[[Any], Tensor] | None = None,
) -> list[LayerCost]:
    """Measure what each layer costs on this machine, in the training modes the model is in.

    Works on a deep copy, on copied inputs and on a forked random state: parameters, gradients,
    buffers and flags of the model stay as they are. One forward pass to count the memory, a
    warm-up, then 3 to 30 repeats in about two seconds; the medians are returned. Backward passes
    start from ones. Hooks on layers run too.

    Args:
        model: an nn.Sequential, see `list_layers`; as many threads and the device as in training.
        sample_inputs: one batch, given to the model as its one argument; a tuple, list or dict of
            tensors where the first layer takes that.
        make_optimizer: ``make_optimizer(params)``; its update is timed as well, at learning rate 0.
        loss: what turns the model's outputs into the loss; it counts with the last layer.
    Returns:
        costs: one per layer, in order.
    Raises:
        PartitionError: a layer fails on what it is given, or returns something else than tensors;
            the model cannot be copied.
    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> [(cost.name, cost.output_bytes) for cost in measure(net, torch.ones(2, 8))]
        [('0', 32), ('1', 32)]
    """
    with probing(model, sample_inputs, make_optimizer=make_optimizer, loss=loss) as probe:
        return probe.layers()


@contextmanager
def probing(
    model: nn.Module,
    sample_inputs: Tree,
    *,
    make_optimizer: MakeOptimizer | None = None,
    loss: Callable[[Any], Tensor] | None = None,
) -> Iterator[Probe]:
    """Within the block, a copy of the model is there to be measured; arguments as `measure`'s."""
    list_layers(model)  # complain about the model before copying it
    devices = _accelerators(model, sample_inputs)

    def clock() -> float:
        for device in devices:
            torch.accelerator.synchronize(device)
        return Probe.now()

    device_type = devices[0].type if devices else "cuda"
    with (
        torch.random.fork_rng(devices=devices, device_type=device_type),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        layers = list_layers(_copy_of(model))
        if loss is not None:
            layers[-1] = Layer(layers[-1].name, _WithLoss(layers[-1].module, loss))
        inputs = map_tensors(Tensor.detach, sample_inputs, "sample_inputs")
        yield Probe(layers, inputs, clock, make_optimizer)


class _WithLoss(nn.Module):
    """The last layer and the loss of its outputs."""

    def __init__(self, layer: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.layer, self.loss = layer, loss

    def forward(self, inputs: Any) -> Tensor:
        return self.loss(self.layer(inputs))


def _copy_of(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise PartitionError(
            f"model cannot be copied for measuring ({type(error).__name__}: {error}); "
            "pass cuts instead of sample_inputs"
        ) from error


def _accelerators(model: nn.Module, sample_inputs: Any) -> list[torch.device]:
    given = tensors_of(sample_inputs, "sample_inputs")
    found = {tensor.device for tensor in [*model.parameters(), *model.buffers(), *given]}
    return sorted((d for d in found if d.type not in ("cpu", "meta")), key=str)
