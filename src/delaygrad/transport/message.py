"""What travels between two stages, and the two ends it travels between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from delaygrad.boundary import Structure, Tree, flatten, unflatten

_FLUSH = "flush"  # no activation has this structure


@dataclass(frozen=True)
class Message:
    """An activation on its way down the network, or an error gradient on its way up.

    Attributes:
        batch_index: which batch it belongs to.
        tensors: detached; an activation with ``requires_grad`` gets an error gradient back. None
            is an error gradient that does not exist.
        structure: rebuilds an activation; see ``delaygrad.boundary``.
        phase: the first batch since the sender's last flush.
        identity: of an activation's batch, made by stage 0; a JSON value.
        share: of the samples of an activation's batch; below 1 for a micro-batch.
        scalars: what else the stages tell each other, float64; None if nothing.
    """

    batch_index: int
    tensors: tuple[Tensor | None, ...]
    structure: Structure = None
    phase: int = 0
    identity: dict[str, Any] | None = None
    scalars: Tensor | None = None
    share: float = 1.0

    @classmethod
    def of_activation(
        cls,
        batch_index: int,
        activation: Tree,
        phase: int = 0,
        identity: dict[str, Any] | None = None,
        scalars: Tensor | None = None,
        share: float = 1.0,
    ) -> Message:
        """Pack what ``Stage.forward`` returned."""
        tensors, structure = flatten(activation)
        return cls(batch_index, tuple(tensors), structure, phase, identity, scalars, share)

    @classmethod
    def of_flush(cls, batch_index: int, loads: int) -> Message:
        """Make the message that this rank has called flush before this (micro-)batch.

        Args:
            loads: how many times this rank has loaded a state; a later load makes the message void.
        """
        return cls(batch_index, (), _FLUSH, loads)

    @property
    def is_flush(self) -> bool:
        """Whether this message was made by ``of_flush``."""
        return isinstance(self.structure, str) and self.structure == _FLUSH

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors if tensor is not None)

    def activation(self) -> Tree:
        """Unpack what ``of_activation`` packed."""
        return unflatten(self.structure, [tensor for tensor in self.tensors if tensor is not None])

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers, for a checkpoint."""
        return {
            "batch": self.batch_index,
            "tensors": list(self.tensors),
            "requires_grad": [t is not None and t.requires_grad for t in self.tensors],
            "structure": self.structure,
            "phase": self.phase,
            "identity": self.identity,
            "scalars": self.scalars,
            "share": self.share,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Message:
        """Rebuild a message from a checkpoint."""
        tensors = tuple(
            None if tensor is None else tensor.detach().clone().requires_grad_(wanted)
            for tensor, wanted in zip(state["tensors"], state["requires_grad"], strict=True)
        )
        about = state["structure"], state["phase"], state["identity"], state.get("scalars")
        return cls(state["batch"], tensors, *about, state.get("share", 1.0))


class Sender(Protocol):
    """The sending end."""

    def send(self, message: Message) -> None:
        """Send a message, in order, without waiting for the other end to receive it."""

    def finish(self) -> None:
        """Wait until the other end has received everything."""


class Receiver(Protocol):
    """The receiving end."""

    def receive(self) -> Message:
        """Return the next message; wait for it if necessary.

        Raises:
            TransportError: no message came in time, or the sender is gone.
        """
