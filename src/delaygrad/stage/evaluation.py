"""Predictions of one stage, beside training: nothing that training uses changes.

A module that changes its state in evaluation mode is found by comparing its buffers before and
after the 1st, 2nd, 4th, 8th ... prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.boundary import Tree, dense, flatten, unflatten
from delaygrad.errors import StageError
from delaygrad.random_stream import RandomStream
from delaygrad.stage.losses import StageLoss
from delaygrad.stage.network import evaluating
from delaygrad.stash import same_values


class Evaluation:
    """Run a stage with its live parameters, without a graph.

    Args:
        module: the stage's network.
        stage_index: its own, for messages.
        device: where the stage computes.
        random: the stage's stream.
        loss: of the last stage; None elsewhere.
    """

    def __init__(
        self,
        module: nn.Module,
        stage_index: int,
        device: torch.device,
        random: RandomStream,
        loss: StageLoss | None,
    ) -> None:
        self._module, self._stage_index, self._device = module, stage_index, device
        self._random, self._loss = random, loss
        self._predictions = 0

    def predict(self, inputs: Tree) -> Tree:
        """Compute outputs in evaluation mode.

        Args:
            inputs: as for ``Stage.forward``.

        Returns:
            What the module returns, without a graph.

        Raises:
            StageError: the module changes its state in evaluation mode; it has its old state again.
        """
        tensors, structure = flatten(inputs)
        tensors = [tensor.to(self._device) for tensor in tensors]
        with self.undisturbed(), evaluating(self._module), self._watching():
            outputs = self._module(unflatten(structure, tensors))
        if self._loss is not None:
            return outputs
        tensors, structure = flatten(outputs)
        return unflatten(structure, [dense(tensor.detach()) for tensor in tensors])

    def loss_of(self, outputs: Tree, targets: Any) -> Tensor:
        """Return the loss of predicted outputs, on the last stage."""
        assert self._loss is not None
        with self.undisturbed():
            return self._loss.of_batch(outputs, targets).detach()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Within the block nothing gets a graph, and random numbers are drawn from a copy."""
        with torch.no_grad(), self._random.replaying(self._random.state()):
            yield

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Within the block the module predicts; its state must not change."""
        self._predictions += 1
        if self._predictions & (self._predictions - 1):
            yield
            return
        before = {name: buffer.clone() for name, buffer in self._state()}
        yield
        changed = []
        for name, buffer in self._state():
            old = before.get(name)
            if old is not None and not _equal(old, buffer):
                changed.append(name)
                if old.shape == buffer.shape:
                    with torch.no_grad():
                        buffer.copy_(old)
        if changed:
            raise StageError(
                f"predict has changed buffers (stage: {self._stage_index}, buffers: "
                f"{', '.join(changed)}); they have their values again; let the module keep them "
                "in evaluation mode, or register them with persistent=False if they are a cache"
            )

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, owner in self._module.named_modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None and name not in owner._non_persistent_buffers_set:
                    yield f"{prefix}.{name}" if prefix else name, buffer


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.layout == other.layout == torch.strided:
        return same_values(one, other)
    return (one.shape, one.dtype) == (other.shape, other.dtype)
