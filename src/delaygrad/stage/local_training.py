"""A stage that makes its error gradient itself: it trains in its forward, and no graph waits.

forward   batch t   the stage's own error gradient -> backward -> the optimizer steps, at once
backward  batch s   the error gradient from the stage above arrives: the network that predicted it
                    learns from it; the gradient kept for the inputs is sent to the stage below
update              the predicting network takes its optimizer step
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from delaygrad.errors import CheckpointError
from delaygrad.methods.axes import LocalGradients
from delaygrad.random_stream import RandomStream
from delaygrad.stash import Pending, PendingTarget, Stash


class LocalTraining:
    """The error gradients of one stage, and the batches that still wait for the true gradients.

    Args:
        gradients: makes the error gradients.
        random: the stage's stream.
        device: where the stage computes.
    """

    def __init__(
        self, gradients: LocalGradients, random: RandomStream, device: torch.device
    ) -> None:
        self._gradients, self._random, self._device = gradients, random, device
        self._waiting: Stash[PendingTarget] = Stash("target")

    def backward(self, batch: Pending) -> list[Tensor | None]:
        """Run the backward pass of a batch whose graph is built; return its detached outputs."""
        assert batch.roots is not None
        outputs = [None if root is None else root.detach() for root in batch.roots]
        with self._random.drawing():
            grads = self._gradients.gradients(outputs, batch.targets)
        ends = [
            (root, grad) for root, grad in zip(batch.roots, grads, strict=True) if root is not None
        ]
        if batch.added is not None and batch.added.requires_grad:
            ends.append((batch.added, torch.ones_like(batch.added)))
        if ends:
            torch.autograd.backward([root for root, _ in ends], [grad for _, grad in ends])
        return outputs

    def keep(
        self,
        batch_index: int,
        outputs: list[Tensor | None],
        targets: Any,
        grad_inputs: list[Tensor | None],
    ) -> None:
        """Keep what ``learn`` needs."""
        waiting = PendingTarget(outputs=outputs, targets=targets, grad_inputs=grad_inputs)
        self._waiting.put(batch_index, waiting)

    def learn(
        self, batch_index: int, grad_outputs: list[Tensor | None] | None
    ) -> list[Tensor | None]:
        """Learn from the error gradients of a batch; return the gradients kept for its inputs.

        Raises:
            StashError: the batch is not waiting.
        """
        waiting = self._waiting.pop(batch_index)
        self._gradients.learn(waiting.outputs, waiting.targets, grad_outputs)
        return waiting.grad_inputs

    def update(self) -> None:
        """Apply what was learned."""
        self._gradients.update()

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot in plain containers."""
        waiting = [entry.describe(batch_index) for batch_index, entry in self._waiting]
        return {"gradients": self._gradients.state_dict(), "waiting": waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, bit for bit."""
        with self._random.replaying(self._random.state()):  # initial values, soon overwritten
            self._gradients.load_state_dict(state["gradients"])
        self._waiting.clear()
        for entry in state["waiting"]:
            waiting = PendingTarget.from_description(entry, self._device)
            self._waiting.put(entry["batch"], waiting)


def require_alike(state: Any, local: LocalTraining | None, stage_index: int) -> None:
    """Raise CheckpointError unless a state has error gradients of its own where the stage has."""
    if (state is None) != (local is None):
        raise CheckpointError(
            f"the checkpoint is of another method (stage: {stage_index}; error gradients of its "
            f"own there: {state is not None}, here: {local is not None})"
        )
