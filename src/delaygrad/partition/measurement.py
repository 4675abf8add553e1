"""Time the pieces of a network on a copy of it: single layers, or whole stages.

One repeat walks through the network once, piece by piece, so that a drift of the machine
(frequency, other processes) hits all pieces alike:

    piece i   copy its input | forward | build ones | backward | update | hand on the output
    timed                      =======                ========   ======

The times of single layers add up badly: each layer finds its input fresh in the cache. A stage is
therefore timed again as a whole, with the copies that the engine makes: of its input, and, where a
batch waits, of its parameters before the update.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from delaygrad.boundary import Tree, flatten, parts_of, unflatten
from delaygrad.errors import PartitionError, StageError
from delaygrad.optimizers import MakeOptimizer, is_of_nothing, joined
from delaygrad.partition.costs import LayerCost, Seconds, Storage
from delaygrad.partition.graph_memory import GraphMemory
from delaygrad.partition.layers import Layer, list_layers

__all__ = ["Measurement", "measure", "measuring"]

MIN_REPEATS = 3
MAX_REPEATS = 10
# No further repeat starts after this, once there are MIN_REPEATS.
LAYERS_BUDGET_S, STAGES_BUDGET_S, PARTS_BUDGET_S = 2.0, 1.5, 0.5


def measure(
    model: nn.Module,
    sample_inputs: Tree,
    *,
    make_optimizer: MakeOptimizer | None = None,
    loss: Callable[[Any], Tensor] | None = None,
) -> list[LayerCost]:
    """Measure what each layer costs on this machine, in the training modes the model is in.

    Works on a deep copy, on copied inputs and on a forked random state: parameters, gradients,
    buffers and flags of the model stay as they are. One forward pass counts the memory, one pass
    warms up, then 3 to 10 repeats in about two seconds; the medians are returned. Backward passes
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
    with measuring(model, sample_inputs, make_optimizer=make_optimizer, loss=loss) as measurement:
        return measurement.layers()


@contextmanager
def measuring(
    model: nn.Module,
    sample_inputs: Tree,
    *,
    make_optimizer: MakeOptimizer | None = None,
    loss: Callable[[Any], Tensor] | None = None,
) -> Iterator[Measurement]:
    """Within the block, a copy of the model is there to be timed; arguments as `measure`'s."""
    list_layers(model)  # complain about the model before copying it
    given = tensors_of(sample_inputs, "sample_inputs")
    found = {tensor.device for tensor in [*model.parameters(), *model.buffers(), *given]}
    devices = sorted((d for d in found if d.type not in ("cpu", "meta")), key=str)

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
        layers = list_layers(_copy_of(model))
        if loss is not None:
            layers[-1] = Layer(layers[-1].name, _WithLoss(layers[-1].module, loss))
        inputs = map_tensors(Tensor.detach, sample_inputs, "sample_inputs")
        yield Measurement(layers, inputs, clock, make_optimizer)


class Measurement:
    """A copy of a network that can be timed piece by piece; `measuring` makes one.

    Args:
        layers: of the copy, in order.
        inputs: one batch.
        clock: seconds; waits for the devices.
        make_optimizer: for the updates; None times none.
    """

    def __init__(
        self,
        layers: list[Layer],
        inputs: Tree,
        clock: Callable[[], float],
        make_optimizer: MakeOptimizer | None,
    ) -> None:
        self._layers, self._inputs, self._clock = layers, inputs, clock
        self._make_optimizer = make_optimizer

    def layers(self) -> list[LayerCost]:
        """Measure every layer: one warm-up, then the medians of 3 to 10 repeats."""
        costs = _count_bytes(self._layers, self._inputs)
        pieces = [self._piece([layer], whole=False) for layer in self._layers]
        self._walk(pieces)
        timed = self._repeat(pieces, LAYERS_BUDGET_S)
        return [
            replace(cost, **seconds.times(), optimizer_bytes=piece.state_bytes())
            for cost, seconds, piece in zip(costs, timed, pieces, strict=True)
        ]

    def stages(self, cuts: Sequence[int]) -> list[Seconds]:
        """Measure whole stages, in turn within each repeat: the medians of 3 to 10 repeats.

        Args:
            cuts: index of the first layer of stages 1 … K-1.
        """
        bounds = pairwise([0, *cuts, len(self._layers)])
        pieces = [
            self._piece(self._layers[first:end], whole=True, waits=end < len(self._layers))
            for first, end in bounds
        ]
        return self._repeat(pieces, STAGES_BUDGET_S)

    def of_parts(self, num_parts: int, cuts: Sequence[int] = ()) -> list[Seconds]:
        """Measure the largest of the parts of a split batch, in each stage.

        Without the loss, which may know the targets of a whole batch.

        Args:
            num_parts: of the batch.
            cuts: as for ``stages``.

        Raises:
            StageError: the inputs cannot be split.
            PartitionError: a layer fails on a part.
        """
        last = self._layers[-1]
        bare = last.module.layer if isinstance(last.module, _WithLoss) else last.module
        layers = [*self._layers[:-1], Layer(last.name, bare)]
        bounds = pairwise([0, *cuts, len(layers)])
        pieces = [self._piece(layers[first:end], whole=True) for first, end in bounds]
        inputs = parts_of(self._inputs, num_parts)[0][0]
        return self._repeat(pieces, PARTS_BUDGET_S, inputs)

    def stage_inputs(self, cuts: Sequence[int]) -> list[Tree]:
        """Return what arrives at each stage, detached; ``requires_grad`` as in training."""
        found, value = [], self._inputs
        for index, layer in enumerate(self._layers):
            if index == 0 or index in cuts:
                found.append(map_tensors(_leave, value, f"input of layer {layer.name!r}"))
            value = map_tensors(_leave, layer.module(map_tensors(_arrive, value, "")), layer.name)
        return found

    def _piece(self, layers: list[Layer], *, whole: bool, waits: bool = False) -> _Piece:
        parameters = list(dict.fromkeys(p for layer in layers for p in layer.module.parameters()))
        optimizer = None
        if parameters and self._make_optimizer is not None:
            optimizer = self._made(self._make_optimizer, parameters)
        return _Piece(layers, parameters, optimizer, whole, waits)

    def _made(
        self, make: MakeOptimizer, parameters: list[nn.Parameter]
    ) -> torch.optim.Optimizer | None:
        try:
            optimizer: torch.optim.Optimizer = joined(make(list(parameters)))
        except ValueError as error:
            if is_of_nothing(error):  # one of several has no part of this layer
                return None
            raise
        for group in getattr(optimizer, "param_groups", []):
            group["lr"] = 0.0  # ones as gradients would soon drive parameters out of range
        return optimizer if hasattr(optimizer, "step") else None

    def _repeat(
        self, pieces: list[_Piece], budget_s: float, inputs: Tree | None = None
    ) -> list[Seconds]:
        walks: list[list[Seconds]] = []
        stop_at = self._clock() + budget_s
        while len(walks) < MIN_REPEATS or (len(walks) < MAX_REPEATS and self._clock() < stop_at):
            walks.append(self._walk(pieces, inputs))
        return [
            Seconds(
                forward_s=statistics.median(repeat.forward_s for repeat in repeats),
                backward_s=statistics.median(repeat.backward_s for repeat in repeats),
                update_s=statistics.median(repeat.update_s for repeat in repeats),
            )
            for repeats in zip(*walks, strict=True)
        ]

    def _walk(self, pieces: list[_Piece], inputs: Tree | None = None) -> list[Seconds]:
        timings, value = [], self._inputs if inputs is None else inputs
        for piece in pieces:
            timing, value = piece.time(value, self._clock)
            timings.append(timing)
        return timings


@dataclass(frozen=True)
class _Piece:
    """Layers timed as one; ``whole``: with the copies of a stage; ``waits``: its batches do."""

    layers: list[Layer]
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer | None
    whole: bool
    waits: bool

    def time(self, value: Tree, clock: Callable[[], float]) -> tuple[Seconds, Tree]:
        source = f"output of layer {self.layers[-1].name!r}"
        start = clock()
        arriving = map_tensors(_arrive, value, source)
        if not self.whole:
            start = clock()
        outputs = _forward(self.layers, arriving)
        forward_s = clock() - start

        reached = [tensor for tensor in tensors_of(outputs, source) if tensor.requires_grad]
        ones = [torch.ones_like(tensor) for tensor in reached]
        backward_s = 0.0
        if reached:
            start = clock()
            try:
                torch.autograd.backward(reached, ones)
            except Exception as error:
                raise _failure("backward", self.layers[-1], value, error) from error
            backward_s = clock() - start
        start = clock()
        self._update()
        update_s = clock() - start if self.optimizer is not None else 0.0
        for parameter in self.parameters:
            parameter.grad = None
        seconds = Seconds(forward_s=forward_s, backward_s=backward_s, update_s=update_s)
        return seconds, map_tensors(_leave, outputs, source)

    def _update(self) -> None:
        if self.optimizer is None:
            return
        if self.waits:
            for parameter in self.parameters:
                parameter.data = parameter.data.clone()
        self.optimizer.step()

    def state_bytes(self) -> int:
        state = {} if self.optimizer is None else self.optimizer.state
        values = [value for entry in state.values() for value in entry.values()]
        return sum(_num_bytes(value) for value in values if isinstance(value, Tensor))


class _WithLoss(nn.Module):
    """The last layer and the loss of its outputs."""

    def __init__(self, layer: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.layer, self.loss = layer, loss

    def forward(self, inputs: Any) -> Tensor:
        return self.loss(self.layer(inputs))


def _copy_of(model: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise PartitionError(
            f"model cannot be copied for measuring ({type(error).__name__}: {error}); "
            "pass cuts instead of sample_inputs"
        ) from error
    for original, own in zip(model.parameters(), copied.parameters(), strict=True):
        vars(own).update(vars(original))  # make_optimizer may ask for them, and torch drops them
    return copied


def _count_bytes(layers: list[Layer], inputs: Tree) -> list[LayerCost]:
    """Run the network forward once as a whole; return the costs, but for times and optimizer."""
    if any(is_lazy(p) for layer in layers for p in layer.module.parameters()):
        _forward(layers, map_tensors(_arrive, inputs, ""))
    own = [t for layer in layers for t in (*layer.module.parameters(), *layer.module.buffers())]
    memory = GraphMemory(own)
    value = map_tensors(_arrive, inputs, "sample_inputs")
    costs = []
    for layer in layers:
        arriving = tensors_of(value, f"input of layer {layer.name!r}")
        saved: dict[int, Storage] = {}
        with memory.watch(saved):
            value = _forward([layer], value)
        outputs = tensors_of(value, f"output of layer {layer.name!r}")
        parameters = list(layer.module.parameters())
        cost = LayerCost(
            name=layer.name,
            forward_s=0.0,
            backward_s=0.0,
            input_bytes=sum(map(_num_bytes, arriving)),
            output_bytes=sum(map(_num_bytes, outputs)),
            gradient_bytes=sum(_num_bytes(t) for t in outputs if t.requires_grad),
            parameter_bytes=sum(map(_num_bytes, parameters)),
            trainable_bytes=sum(_num_bytes(p) for p in parameters if p.requires_grad),
            saved=saved,
            outputs=memory.storages(outputs),
        )
        costs.append(cost)
    return costs


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _forward(layers: list[Layer], value: Tree) -> Tree:
    for layer in layers:
        try:
            outputs = layer.module(value)
        except Exception as error:
            raise _failure("forward", layer, value, error) from error
        value = outputs
    return value


def _arrive(tensor: Tensor) -> Tensor:
    # The clone is no autograd leaf, so an in-place layer may write to it.
    return _leave(tensor).clone()


def _leave(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _failure(direction: str, layer: Layer, value: Tree, error: Exception) -> PartitionError:
    given = ", ".join(
        f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in flatten(value)[0]
    )
    return PartitionError(
        f"{direction} of layer {layer.name!r} failed on the sample inputs "
        f"(layer: {type(layer.module).__name__}, its input: {given}, "
        f"{type(error).__name__}: {error}); pass sample_inputs that the model accepts"
    )


def tensors_of(value: Tree, source: str) -> list[Tensor]:
    """List the tensors of what a layer takes or returns; ``source`` names it in errors."""
    return _flat(value, source)[0]


def map_tensors(fn: Callable[[Tensor], Tensor], value: Tree, source: str) -> Tree:
    """Apply a function to every tensor of a tree; ``source`` names it in errors."""
    tensors, structure = _flat(value, source)
    return unflatten(structure, [fn(tensor) for tensor in tensors])


def _flat(value: Tree, source: str) -> tuple[list[Tensor], Any]:
    try:
        return flatten(value)
    except StageError as error:
        raise PartitionError(f"{source} cannot cross between stages: {error}") from error
