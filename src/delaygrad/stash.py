"""What waits between the forward and the backward of a batch: its graph and its parameters.

The rule (Huo et al., ICML 2018) linearises a batch at the parameters that its forward used. An
optimizer writes into parameters in place, so those of a waiting batch must be kept apart:

    forward of batch s   the graph is built on *aliases* that share the live parameters' memory
    before the update    if a graph waits on that memory, the live parameters move to a copy
    update               the optimizer writes into the copy; the waiting graph never notices

So there is one copy per parameter version, none when no update came in between, and none at all on
a stage whose delay is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from delaygrad.boundary import Structure, flatten, unflatten
from delaygrad.errors import CheckpointError, StashError
from delaygrad.random_stream import RandomState

Entry = TypeVar("Entry")


class Stash(Generic[Entry]):
    """What is kept for each batch, in the order in which it was put.

    Example:
        >>> stash = Stash[str]("graph")
        >>> stash.put(3, "a graph")
        >>> stash.pop(3), len(stash)
        ('a graph', 0)
        >>> stash.pop(3)
        Traceback (most recent call last):
        ...
        delaygrad.errors.StashError: no graph is stashed for this batch (batch: 3, stashed: [])
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._entries: dict[int, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[int, Entry]]:
        return iter(self._entries.items())

    def put(self, batch_index: int, entry: Entry) -> None:
        """Keep an entry.

        Raises:
            StashError: there is one for this batch already.
        """
        if batch_index in self._entries:
            raise StashError(f"a {self._what} is stashed for this batch already ({batch_index})")
        self._entries[batch_index] = entry

    def pop(self, batch_index: int) -> Entry:
        """Take an entry out.

        Raises:
            StashError: there is none for this batch.
        """
        try:
            return self._entries.pop(batch_index)
        except KeyError:
            raise StashError(
                f"no {self._what} is stashed for this batch "
                f"(batch: {batch_index}, stashed: {list(self._entries)})"
            ) from None

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


@dataclass(frozen=True)
class ParameterSlot:
    """One place in a module that holds a parameter, and what stands in for it."""

    name: str
    owner: nn.Module
    attribute: str
    live: nn.Parameter
    alias: nn.Parameter

    def install(self, parameter: nn.Parameter | None) -> None:
        if isinstance(self.owner, nn.RNNBase):  # keeps a second list of its weights, by setattr
            setattr(self.owner, self.attribute, parameter)
        else:
            self.owner._parameters[self.attribute] = parameter


@dataclass(frozen=True)
class ParameterVersion:
    """The parameters of a stage, and which of them were frozen, after ``version`` updates."""

    version: int
    slots: list[ParameterSlot] = field(repr=False)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, the module computes with this version."""
        outside = [slot.owner._parameters[slot.attribute] for slot in self.slots]
        for slot in self.slots:
            slot.install(slot.alias)
        try:
            yield
        finally:
            for slot, parameter in zip(self.slots, outside, strict=True):
                slot.install(parameter)

    def move_gradients(self) -> None:
        """Hand the gradients to the live parameters, replacing theirs; None stays None.

        A parameter that has been frozen since gets none: it must not move any more.
        """
        # Tied parameters fill several slots with one pair of tensors.
        for live, alias in {slot.live: slot.alias for slot in self.slots}.items():
            live.grad = alias.grad if live.requires_grad else None
            alias.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the values by parameter name, for a checkpoint; frozen ones want no gradient."""
        return {
            slot.name: slot.alias.detach().requires_grad_(slot.alias.requires_grad)
            for slot in self.slots
        }


@dataclass(frozen=True)
class Pending:
    """A batch between its forward and its backward.

    Attributes:
        inputs: leaves; their ``.grad`` becomes the error gradient to send down.
        structure: of the inputs; see ``delaygrad.boundary``.
        roots: ends of the graph, one per output tensor; None where no gradient runs.
        weights: what the graph was built on; None is the live parameters, where no update comes in
            between.
        targets: for the last stage.
        random_state: before the forward; None where no replay is ever needed.
    """

    inputs: list[Tensor]
    structure: Structure
    roots: list[Tensor | None]
    weights: ParameterVersion | None
    targets: Any
    random_state: RandomState | None

    def describe(self, batch_index: int) -> dict[str, Any]:
        """Return what a replay of the forward needs, for a checkpoint.

        Raises:
            CheckpointError: the batch is in the middle of an iteration.
        """
        if self.weights is None:
            raise CheckpointError(
                f"batch {batch_index} is between its forward and its backward; "
                "take a checkpoint between two iterations"
            )
        tensors, structure = flatten(self.targets)
        return {
            "batch": batch_index,
            "inputs": [leaf.detach() for leaf in self.inputs],
            "requires_grad": [leaf.requires_grad for leaf in self.inputs],
            "structure": self.structure,
            "targets": {"tensors": tensors, "structure": structure},
            "version": self.weights.version,
            "random": self.random_state,
        }

    @staticmethod
    def given(described: dict[str, Any], device: torch.device) -> tuple[list[Tensor], Any]:
        """Return the leaves and targets of a described batch, on a device."""
        wanted = zip(described["inputs"], described["requires_grad"], strict=True)
        leaves = [tensor.to(device, copy=True).requires_grad_(flag) for tensor, flag in wanted]
        targets = described["targets"]
        on_device = [tensor.to(device) for tensor in targets["tensors"]]
        return leaves, unflatten(targets["structure"], on_device)


class ParameterStash:
    """Make parameter versions, and keep the live parameters out of their way.

    Args:
        module: the stage's network; its parameters may be frozen, unfrozen or replaced at any
            time between updates.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._shared: set[nn.Parameter] = set()  # live ones whose memory versions use too

    def current(self, version: int) -> ParameterVersion:
        """Return the live parameters as a version; it shares their memory until an update."""
        current = self._alias(version, values=None)
        self._shared.update(slot.live for slot in current.slots)
        return current

    def restore(self, version: int, values: dict[str, Tensor]) -> ParameterVersion:
        """Return a version with the values that ``ParameterVersion.tensors`` gave."""
        return self._alias(version, values)

    def before_update(self) -> None:
        """Move the live parameters to a copy if a version shares their memory.

        Frozen ones stay, and cost nothing: no optimizer writes into them.
        """
        moving = {live for live in self._shared if live.requires_grad}
        _move(moving)
        self._shared -= moving

    def forget(self) -> None:
        """Forget that versions share memory: their graphs are gone."""
        self._shared.clear()

    def _alias(self, version: int, values: dict[str, Tensor] | None) -> ParameterVersion:
        aliases: dict[nn.Parameter, nn.Parameter] = {}  # one for each, also where tied
        slots = []
        for prefix, owner in self._module.named_modules():
            for attribute, live in owner._parameters.items():
                name = f"{prefix}.{attribute}" if prefix else attribute
                if live is None:
                    continue
                if live not in aliases:
                    source = live if values is None else values[name].to(live.device)
                    aliases[live] = nn.Parameter(source.data, source.requires_grad)
                slots.append(ParameterSlot(name, owner, attribute, live, aliases[live]))
        return ParameterVersion(version, slots)


def _move(parameters: Iterable[nn.Parameter]) -> None:
    """Move parameters to copies; those that are one in memory stay so."""
    copies: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    for parameter in parameters:
        memory = (parameter.data_ptr(), parameter.shape, parameter.stride())
        if memory not in copies:
            copies[memory] = parameter.data.clone()
        parameter.data = copies[memory]


@contextmanager
def copied_buffers(module: nn.Module) -> Iterator[None]:
    """Within the block, the module works on copies of its buffers (BatchNorm statistics)."""
    places = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    copies: dict[int, Tensor] = {}
    with torch.no_grad():
        for owner, name, buffer in places:
            owner._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
    try:
        yield
    finally:
        for owner, name, buffer in places:
            owner._buffers[name] = buffer
