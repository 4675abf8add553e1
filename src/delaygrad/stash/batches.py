"""Batches between their forward and their backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from delaygrad.boundary import Structure, flatten, unflatten
from delaygrad.errors import CheckpointError, StashError
from delaygrad.random_stream import RandomState
from delaygrad.stash.version import ParameterVersion

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
            StashError: the batch has an entry already.
        """
        if batch_index in self._entries:
            raise StashError(f"a {self._what} is stashed for this batch already ({batch_index})")
        self._entries[batch_index] = entry

    def pop(self, batch_index: int) -> Entry:
        """Take an entry out.

        Raises:
            StashError: the batch has no entry.
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


@dataclass(kw_only=True, slots=True)
class Pending:
    """A batch between its forward and its backward.

    Attributes:
        inputs: leaves; their ``.grad`` becomes the error gradient to send down.
        structure: of the inputs; see ``delaygrad.boundary``.
        targets: for the last stage.
        share: its samples / those of the whole batch; below 1 for a micro-batch.
        weights: the version that the forward used; None is the live parameters, if no update comes
            before the backward, or if the backward uses the current parameters.
        random_state: before the forward; None where no replay is ever needed.
        autocast: what the forward computed in under ``torch.autocast``; None: it was off.
        buffers: what the forward met, by name.
        portion: the batch's share of the samples, for losses that modules add.
        scale: of its loss; None where none is used.
        checksum: of the outputs, where the forward is to be computed again.
        roots: ends of the graph, one per output tensor; None for an output without a gradient.
            The whole list is None while the graph is not built (or not built again).
        added: what the stage's modules have added to the loss, with its graph.
    """

    inputs: list[Tensor]
    structure: Structure
    targets: Any
    share: float
    weights: ParameterVersion | None = None
    random_state: RandomState | None = None
    autocast: torch.dtype | None = None
    buffers: dict[str, Tensor | None] = field(default_factory=dict)
    portion: float = 1.0
    scale: Tensor | None = None
    checksum: list[int] | None = None
    roots: list[Tensor | None] | None = None
    added: Tensor | None = None

    def describe(self, batch_index: int, buffers: dict[str, Tensor | None]) -> dict[str, Any]:
        """Return what a replay of the forward needs, for a checkpoint.

        Args:
            batch_index: its own.
            buffers: the current ones by name, which the checkpoint holds anyway; buffers that have
                not changed since the forward are left out.

        Raises:
            CheckpointError: the batch is in the middle of an iteration.
        """
        if self.random_state is None:
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
            "share": self.share,
            "portion": self.portion,
            "scale": self.scale,
            "edition": None if self.weights is None else self.weights.edition,
            "changed": [] if self.weights is None else self.weights.changed(),
            "random": self.random_state,
            "autocast": None if self.autocast is None else str(self.autocast).split(".")[1],
            "buffers": {
                name: value
                for name, value in self.buffers.items()
                if name not in buffers or not _same(value, buffers[name])
            },
        }

    @classmethod
    def from_description(
        cls,
        described: dict[str, Any],
        weights: ParameterVersion | None,
        buffers: dict[str, Tensor | None],
        device: torch.device,
    ) -> Pending:
        """Return a described batch on a device; its graph is not built yet.

        Args:
            described: by ``describe``.
            weights: of its edition.
            buffers: of the module, with all that the checkpoint holds, by name.
            device: where to.
        """
        wanted = zip(described["inputs"], described["requires_grad"], strict=True)
        targets = described["targets"]
        on_device = [tensor.to(device) for tensor in targets["tensors"]]
        return cls(
            inputs=[tensor.to(device, copy=True).requires_grad_(flag) for tensor, flag in wanted],
            structure=described["structure"],
            targets=unflatten(targets["structure"], on_device),
            share=described["share"],
            portion=described.get("portion", 1.0),
            scale=None if described.get("scale") is None else described["scale"].to(device),
            weights=weights,
            random_state=described["random"],
            autocast=described["autocast"] and getattr(torch, described["autocast"]),
            buffers={
                **buffers,
                **{
                    name: None if value is None else value.to(device)
                    for name, value in described["buffers"].items()
                },
            },
        )


@dataclass(kw_only=True)
class PendingTarget:
    """What is kept of a batch on a stage that trains at once, until its error gradient arrives.

    Attributes:
        outputs: of the stage, those that a gradient is wanted for; None in place of the others.
        targets: those of the batch, if the method shows them to every stage, else None.
        grad_inputs: gradients of the stage's inputs; None for an input without one.
    """

    outputs: list[Tensor | None]
    targets: Any
    grad_inputs: list[Tensor | None]

    def describe(self, batch_index: int) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        tensors, structure = flatten(self.targets)
        return {
            "batch": batch_index,
            "outputs": list(self.outputs),
            "targets": {"tensors": tensors, "structure": structure},
            "grad_inputs": list(self.grad_inputs),
        }

    @classmethod
    def from_description(cls, described: dict[str, Any], device: torch.device) -> PendingTarget:
        """Return a described entry on a device."""
        targets: dict[str, Any] = described["targets"]
        structure: Structure = targets["structure"]
        return cls(
            outputs=_copies(described["outputs"], device),
            targets=unflatten(structure, [tensor.to(device) for tensor in targets["tensors"]]),
            grad_inputs=_copies(described["grad_inputs"], device),
        )


def _copies(tensors: list[Tensor | None], device: torch.device) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(device, copy=True) for tensor in tensors]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is other:
        return True
    if one is None or other is None or not other.layout == one.layout == torch.strided:
        return False
    return other.dtype == one.dtype and torch.equal(one, other)
