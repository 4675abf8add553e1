"""The gradient of a batch at the live parameters, computed beside training.

A monitor compares it with the gradient that the stage applies. The pass runs on copies of the
parameters and buffers, with the random numbers and autocast settings of the batch's own forward;
training does not notice it. No rounding, shrinking or scaling at boundaries: it is the gradient
that plain backpropagation has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.boundary import Tree, dense, flatten, unflatten
from delaygrad.random_stream import RandomStream
from delaygrad.stage.added_losses import Collecting, total, with_added
from delaygrad.stage.losses import StageLoss
from delaygrad.stage.network import go_backward
from delaygrad.stash import ParameterStash, ParameterVersion, Pending, as_it_was, autocast_dtype


class LivePass:
    """Forward and backward of one stage at the live parameters, for one watched batch at a time.

    Args:
        module: the stage's network.
        random: the stage's stream.
        device: where the stage computes.
        loss: of the last stage; None elsewhere.
        is_first: whether the stage takes the user's inputs.
    """

    def __init__(
        self,
        module: nn.Module,
        random: RandomStream,
        device: torch.device,
        *,
        loss: StageLoss | None,
        is_first: bool,
    ) -> None:
        self._module, self._random, self._device = module, random, device
        self._loss, self._is_first = loss, is_first
        self._replayed = RandomStream(device, 0)
        self._watched, self._keeps_start = range(0), False
        self._entered: dict[int, Pending] = {}
        self._open: dict[int, Pending] = {}
        self._version: ParameterVersion | None = None
        self.portion = 1.0
        """The last micro-batch's share of the samples of its batch."""
        self.met: dict[str, Tensor] = {}
        """What the forward of the first watched micro-batch used, by name."""
        self.start: dict[str, Tensor] = {}
        """The live parameters at that moment; they differ from ``met`` if the method predicts."""
        self.live: dict[str, Tensor] = {}
        """The trainable parameters of the last pass, by name."""
        self.gradients: dict[str, Tensor | None] = {}
        """Their gradients; None for what the loss does not depend on."""

    def watch(self, batches: range, *, keep_start: bool) -> None:
        """Keep what a pass will need of these micro-batches; forget the earlier ones.

        Args:
            batches: of one batch, in order.
            keep_start: keep ``met`` and ``start`` too.
        """
        self._watched, self._keeps_start = batches, keep_start
        self._entered.clear()
        self._open.clear()
        self.met, self.start, self.live, self.gradients = {}, {}, {}, {}
        self._version = None

    def enter(self, batch_index: int, batch: Pending) -> None:
        """Note what a forward meets, just before it runs."""
        if batch_index not in self._watched:
            return
        if self._keeps_start and not self._entered:
            self.start = self._live(trainable_only=True)
            met = {} if batch.weights is None else batch.weights.named()
            self.met = {n: met.get(n, live).detach().clone() for n, live in self.start.items()}
        inputs = [leaf.detach().clone() for leaf in batch.inputs] if self._is_first else []
        self._entered[batch_index] = replace(batch, inputs=inputs, weights=None)

    def forward(
        self, batch_index: int, inputs: Tree, targets: Any, share: float, portion: float
    ) -> Tree:
        """Take a micro-batch forward; call it for the parts of a batch in order.

        Args:
            batch_index: a watched one. If its own forward has not run yet, it is the next to run.
            inputs: from the stage below in this pass; on the first stage only used if the
                micro-batch's own forward has not run yet.
            targets, share: on the last stage, in the same case.
            portion: of the samples, in the same case.

        Returns:
            What the next stage takes; nothing of meaning on the last stage.
        """
        if self._version is None:
            stash = ParameterStash(self._module)
            self._version = stash.restore(0, self._live())
            self._replayed.set_state(self._random.state())
        batch = self._entered.get(batch_index)
        if batch is None:
            batch = Pending(
                inputs=[], structure=None, targets=targets, share=share, portion=portion
            )
            batch.autocast = autocast_dtype(self._device)
        elif batch.random_state is not None:
            self._replayed.set_state(batch.random_state)
        self.portion = batch.portion
        if inputs is None:
            tensors, structure = batch.inputs, batch.structure
        else:
            tensors, structure = flatten(inputs)
        leaves = [
            tensor.detach().to(self._device, copy=True).requires_grad_(tensor.requires_grad)
            for tensor in tensors
        ]
        batch = replace(batch, inputs=leaves, structure=structure)
        where = as_it_was(self._module, batch, self._device)
        with self._replayed.drawing(), where, self._version.installed(), Collecting() as added:
            copies = [leaf.clone() for leaf in leaves]
            outputs = self._module(unflatten(structure, copies))
            if self._loss is not None:
                outputs = self._loss.part(outputs, batch.targets, batch.share)
        ends, structure = flatten(outputs)
        batch.roots = [end if end.requires_grad else None for end in ends]
        batch.added = total(added, batch.portion)
        self._open[batch_index] = batch
        handed_on = [dense(end.detach()).requires_grad_(end.requires_grad) for end in ends]
        return unflatten(structure, handed_on)

    def backward(
        self, batch_index: int, grad_outputs: list[Tensor | None] | None
    ) -> list[Tensor | None]:
        """Take a micro-batch backward; return the gradients of its inputs."""
        batch = self._open.pop(batch_index)
        assert batch.roots is not None and self._version is not None
        with self._version.installed():
            go_backward(*with_added(batch.roots, grad_outputs, batch.added))
        return [None if leaf.grad is None else dense(leaf.grad) for leaf in batch.inputs]

    def end(self) -> None:
        """Set ``live`` and ``gradients``, and forget the batch."""
        assert self._version is not None
        slots = [slot for slot in self._version.slots if slot.live.requires_grad]
        self.live = {slot.name: slot.alias.detach() for slot in slots}
        self.gradients = {slot.name: slot.alias.grad for slot in slots}
        self._watched, self._version = range(0), None
        self._entered.clear()
        self._open.clear()

    def _live(self, *, trainable_only: bool = False) -> dict[str, Tensor]:
        return {
            name: parameter.detach().clone().requires_grad_(parameter.requires_grad)
            for name, parameter in self._module.named_parameters(remove_duplicate=trainable_only)
            if parameter.requires_grad or not trainable_only
        }
