"""Time the forward and the backward pass of every layer, and disturb nothing of the user's.

One repeat walks through the network once, layer by layer, so that a drift of the machine
(frequency, other processes) hits all layers alike:

    layer i   copy its input | forward | build ones | backward | hand on the detached output
    timed                      =======                ========
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.boundary import Structure, Tree, flatten, unflatten
from delaygrad.errors import PartitionError, StageError
from delaygrad.partition.layers import Layer, list_layers

__all__ = ["LayerCost", "measure"]

MIN_REPEATS = 3
MAX_REPEATS = 30
BUDGET_S = 2.0  # no further repeat starts after this, once there are MIN_REPEATS


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one batch.

    Args:
        name: dotted path of the layer.
        forward_s: seconds, median over the repeats.
        backward_s: seconds, median; 0 where no gradient flows (frozen layers, integer outputs).
        activation_bytes: size of the layer's output, what a boundary after it would send.
        parameter_bytes: size of the layer's parameters; a tensor used twice counts once.
    """

    name: str
    forward_s: float
    backward_s: float
    activation_bytes: int
    parameter_bytes: int


def measure(model: nn.Module, sample_inputs: Tree) -> list[LayerCost]:
    """Measure what each layer costs on this machine, in the training modes the model is in.

    Works on a deep copy, on copied inputs and on a forked random state: parameters, gradients,
    buffers and flags of the model stay as they are. One warm-up, then 3 to 30 repeats in about
    two seconds; the medians are returned. Backward passes start from ones. Hooks on layers run too.

    Args:
        model: an nn.Sequential, see `list_layers`; as many threads and the device as in training.
        sample_inputs: one batch, given to the model as its one argument; a tuple, list or dict of
            tensors where the first layer takes that.
    Returns:
        costs: one per layer, in order.
    Raises:
        PartitionError: a layer fails on what it is given, or returns something else than tensors;
            the model cannot be copied.
    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> [(cost.name, cost.activation_bytes) for cost in measure(net, torch.ones(2, 8))]
        [('0', 32), ('1', 32)]
    """
    list_layers(model)  # complain about the model before copying it
    with _undisturbed(_accelerators(model, sample_inputs)) as clock:
        layers = list_layers(_copy_of(model))
        inputs = _map(Tensor.detach, sample_inputs, "sample_inputs")
        sizes = [timing.activation_bytes for timing in _walk(layers, inputs, clock)]
        walks: list[list[_Timing]] = []
        stop_at = clock() + BUDGET_S
        while len(walks) < MIN_REPEATS or (len(walks) < MAX_REPEATS and clock() < stop_at):
            walks.append(_walk(layers, inputs, clock))
    return [
        LayerCost(
            name=layer.name,
            forward_s=statistics.median(walk[i].forward_s for walk in walks),
            backward_s=statistics.median(walk[i].backward_s for walk in walks),
            activation_bytes=sizes[i],
            parameter_bytes=sum(_num_bytes(p) for p in layer.module.parameters()),
        )
        for i, layer in enumerate(layers)
    ]


@dataclass(frozen=True)
class _Timing:
    forward_s: float
    backward_s: float
    activation_bytes: int


def _walk(layers: list[Layer], inputs: Any, clock: Callable[[], float]) -> list[_Timing]:
    timings = []
    value = inputs
    for layer in layers:
        timing, value = _time_layer(layer, value, clock)
        timings.append(timing)
    return timings


def _time_layer(layer: Layer, value: Any, clock: Callable[[], float]) -> tuple[_Timing, Any]:
    source = f"output of layer {layer.name!r}"
    arriving = _map(_arrive, value, source)
    start = clock()
    try:
        outputs = layer.module(arriving)
    except Exception as error:
        raise _failure("forward", layer, value, error) from error
    forward_s = clock() - start

    tensors = _tensors(outputs, source)[0]
    reached = [tensor for tensor in tensors if tensor.requires_grad]
    ones = [torch.ones_like(tensor) for tensor in reached]
    backward_s = 0.0
    if reached:
        start = clock()
        try:
            torch.autograd.backward(reached, ones)
        except Exception as error:
            raise _failure("backward", layer, value, error) from error
        backward_s = clock() - start
    layer.module.zero_grad(set_to_none=True)

    timing = _Timing(forward_s, backward_s, sum(_num_bytes(tensor) for tensor in tensors))
    return timing, _map(_leave, outputs, source)


def _arrive(tensor: Tensor) -> Tensor:
    # The clone is no autograd leaf, so an in-place layer may write to it.
    return tensor.detach().requires_grad_(tensor.requires_grad).clone()


def _leave(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _failure(direction: str, layer: Layer, value: Any, error: Exception) -> PartitionError:
    return PartitionError(
        f"{direction} of layer {layer.name!r} failed on the sample inputs "
        f"(layer: {type(layer.module).__name__}, its input: {_describe(value)}, "
        f"{type(error).__name__}: {error}); pass sample_inputs that the model accepts"
    )


def _copy_of(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise PartitionError(
            f"model cannot be copied for measuring ({type(error).__name__}: {error}); "
            "pass cuts instead of sample_inputs"
        ) from error


def _accelerators(model: nn.Module, sample_inputs: Any) -> list[torch.device]:
    tensors = [*model.parameters(), *model.buffers(), *_tensors(sample_inputs, "sample_inputs")[0]]
    found = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    return sorted(found, key=str)


@contextmanager
def _undisturbed(devices: list[torch.device]) -> Iterator[Callable[[], float]]:
    """Fork the random states and record gradients; yield a clock that waits for the devices."""

    def clock() -> float:
        for device in devices:
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    device_type = devices[0].type if devices else "cuda"
    with (
        torch.random.fork_rng(devices=devices, device_type=device_type),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield clock


def _tensors(value: Tree, source: str) -> tuple[list[Tensor], Structure]:
    try:
        return flatten(value)
    except StageError as error:
        raise PartitionError(f"{source} cannot cross between stages: {error}") from error


def _map(fn: Callable[[Tensor], Tensor], value: Tree, source: str) -> Tree:
    tensors, structure = _tensors(value, source)
    return unflatten(structure, [fn(tensor) for tensor in tensors])


def _describe(value: Tree) -> str:
    tensors, _ = flatten(value)
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in tensors)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
