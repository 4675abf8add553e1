"""Time the pieces of a network: single layers, or whole stages.

One repeat walks through the network once, piece by piece, so that a drift of the machine
(frequency, other processes) hits all pieces alike:

    piece i   copy its input | forward | build ones | backward | update | hand on the output
    timed                      =======                ========   ======

Single layers tell where time goes, but add up badly: each is timed with its input fresh in the
cache. A stage is therefore timed again as a whole, with the copies that the engine makes: of its
input, and, where a batch waits, of its parameters before the update.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from delaygrad.boundary import Tree, flatten, unflatten
from delaygrad.errors import PartitionError, StageError
from delaygrad.partition.costs import LayerCost, Seconds, Storage
from delaygrad.partition.layers import Layer
from delaygrad.partition.saved import GraphMemory

__all__ = ["MakeOptimizer", "Probe", "map_tensors", "tensors_of"]

MIN_REPEATS = 3
MAX_REPEATS = 30
# No further repeat starts after this, once there are MIN_REPEATS.
LAYERS_BUDGET_S, STAGES_BUDGET_S = 2.0, 1.5

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""``make_optimizer(params)``: any ``torch.optim`` optimizer."""


class Probe:
    """A copy of a network that can be timed piece by piece; `measure.probing` makes one.

    Args:
        layers: of the copy, in order.
        inputs: one batch.
        clock: seconds; waits for the devices.
        make_optimizer: for the updates; None times none.
    """

    now = staticmethod(time.perf_counter)

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
        """Measure every layer: one warm-up, then the medians of 3 to 30 repeats."""
        costs = _count_bytes(self._layers, self._inputs)
        pieces = [self._piece([layer], whole=False) for layer in self._layers]
        self._walk(pieces)
        timed = self._repeat(pieces, LAYERS_BUDGET_S)
        return [
            replace(cost, **vars(seconds), optimizer_bytes=piece.state_bytes())
            for cost, seconds, piece in zip(costs, timed, pieces, strict=True)
        ]

    def stages(self, cuts: Sequence[int]) -> list[Seconds]:
        """Measure whole stages, in turn within each repeat: the medians of 3 to 30 repeats.

        Args:
            cuts: index of the first layer of stages 1 … K-1.
        """
        bounds = list(pairwise([0, *cuts, len(self._layers)]))
        pieces = [
            self._piece(self._layers[first:end], whole=True, moves=end < len(self._layers))
            for first, end in bounds
        ]
        return self._repeat(pieces, STAGES_BUDGET_S)

    def stage_inputs(self, cuts: Sequence[int]) -> list[Tree]:
        """Return what arrives at each stage, detached; ``requires_grad`` as in training."""
        found, value = [], self._inputs
        for index, layer in enumerate(self._layers):
            if index == 0 or index in cuts:
                found.append(map_tensors(_leave, value, f"input of layer {layer.name!r}"))
            value = map_tensors(_leave, layer.module(map_tensors(_arrive, value, "")), layer.name)
        return found

    def _piece(self, layers: list[Layer], *, whole: bool, moves: bool = False) -> _Piece:
        parameters = list(dict.fromkeys(p for layer in layers for p in layer.module.parameters()))
        optimizer = None
        if parameters and self._make_optimizer is not None:
            optimizer = self._make_optimizer(list(parameters))
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # ones as gradients would soon drive parameters out of range
        return _Piece(layers, parameters, optimizer, whole, moves)

    def _repeat(self, pieces: list[_Piece], budget_s: float) -> list[Seconds]:
        walks: list[list[Seconds]] = []
        stop_at = self._clock() + budget_s
        while len(walks) < MIN_REPEATS or (len(walks) < MAX_REPEATS and self._clock() < stop_at):
            walks.append(self._walk(pieces))
        return [
            Seconds(
                forward_s=statistics.median(walk[i].forward_s for walk in walks),
                backward_s=statistics.median(walk[i].backward_s for walk in walks),
                update_s=statistics.median(walk[i].update_s for walk in walks),
            )
            for i in range(len(pieces))
        ]

    def _walk(self, pieces: list[_Piece]) -> list[Seconds]:
        timings, value = [], self._inputs
        for piece in pieces:
            timing, value = _time_piece(piece, value, self._clock)
            timings.append(timing)
        return timings


@dataclass(frozen=True)
class _Piece:
    """Layers that are timed as one; ``whole``: as a stage; ``moves``: its parameters to a copy."""

    layers: list[Layer]
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer | None
    whole: bool
    moves: bool

    def update(self) -> None:
        if self.optimizer is None:
            return
        if self.moves:
            for parameter in self.parameters:
                parameter.data = parameter.data.clone()
        self.optimizer.step()

    def state_bytes(self) -> int:
        state = {} if self.optimizer is None else self.optimizer.state
        return sum(
            _num_bytes(value)
            for entry in state.values()
            for value in entry.values()
            if isinstance(value, Tensor)
        )


def _time_piece(piece: _Piece, value: Tree, clock: Callable[[], float]) -> tuple[Seconds, Tree]:
    source = f"output of layer {piece.layers[-1].name!r}"
    start = clock()
    arriving = map_tensors(_arrive, value, source)
    if not piece.whole:
        start = clock()
    outputs = _forward(piece, arriving)
    forward_s = clock() - start

    reached = [tensor for tensor in tensors_of(outputs, source) if tensor.requires_grad]
    ones = [torch.ones_like(tensor) for tensor in reached]
    backward_s = 0.0
    if reached:
        start = clock()
        try:
            torch.autograd.backward(reached, ones)
        except Exception as error:
            raise _failure("backward", piece.layers[-1], value, error) from error
        backward_s = clock() - start
    start = clock()
    piece.update()
    update_s = clock() - start if piece.optimizer is not None else 0.0
    for parameter in piece.parameters:
        parameter.grad = None
    seconds = Seconds(forward_s=forward_s, backward_s=backward_s, update_s=update_s)
    return seconds, map_tensors(_leave, outputs, source)


def _forward(piece: _Piece, value: Tree) -> Tree:
    for layer in piece.layers:
        try:
            outputs = layer.module(value)
        except Exception as error:
            raise _failure("forward", layer, value, error) from error
        value = outputs
    return value


def _count_bytes(layers: list[Layer], inputs: Tree) -> list[LayerCost]:
    """Run the network forward once as a whole; return the costs, but for times and optimizer."""
    if any(is_lazy(p) for layer in layers for p in layer.module.parameters()):
        _forward(_Piece(layers, [], None, False, False), map_tensors(_arrive, inputs, ""))
    own = [t for layer in layers for t in (*layer.module.parameters(), *layer.module.buffers())]
    memory = GraphMemory(own)
    value = map_tensors(_arrive, inputs, "sample_inputs")
    costs = []
    for layer in layers:
        arriving = tensors_of(value, f"input of layer {layer.name!r}")
        saved: dict[int, Storage] = {}
        with memory.watch(saved):
            value = _forward(_Piece([layer], [], None, False, False), value)
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


def tensors_of(value: Tree, source: str) -> list[Tensor]:
    """List the tensors of what a layer takes or returns.

    Raises:
        PartitionError: there is something else in it.
    """
    try:
        return flatten(value)[0]
    except StageError as error:
        raise PartitionError(f"{source} cannot cross between stages: {error}") from error


def map_tensors(fn: Callable[[Tensor], Tensor], value: Tree, source: str) -> Tree:
    """Apply a function to every tensor of a tree; ``source`` names it in errors."""
    tensors = tensors_of(value, source)
    return unflatten(flatten(value)[1], [fn(tensor) for tensor in tensors])


def _describe(value: Tree) -> str:
    tensors, _ = flatten(value)
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in tensors)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
