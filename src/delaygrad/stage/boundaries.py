"""What happens to tensors that cross the two boundaries of a stage.

    activation from below   -> device -> float32 -> leaf       or, on stage 0, the user's inputs
    outputs                 -> detached -> rounded -> dense    the stage above gets them
    gradients of the leaves -> scaled -> rounded -> dense      the stage below gets them

``boundary_dtype`` of the method rounds; its error gradient may scale (``Shrunk``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from delaygrad.boundary import Structure, Tree, dense, flatten, narrowed, widened
from delaygrad.methods import Method
from delaygrad.stage.network import apart_from


class Boundaries:
    """The boundaries of one stage.

    Args:
        module: the stage's network.
        device: where it computes.
        method: the rule to train by.
        stage_index: its own.
        num_stages: K.
        waits: whether inputs outlive the forward.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        method: Method,
        stage_index: int,
        num_stages: int,
        *,
        waits: bool,
    ) -> None:
        self._module, self._device, self._waits = module, device, waits
        self._dtype, self._error_gradient = method.boundary_dtype, method.error_gradient
        self._stage_index, self._num_stages = stage_index, num_stages

    def enter(self, inputs: Tree) -> tuple[list[Tensor], Structure]:
        """Return the inputs of a forward as leaves, with their structure."""
        tensors, structure = flatten(inputs)
        here = self._device
        if self._stage_index:
            return [
                widened(tensor.to(here).detach(), self._dtype).requires_grad_(tensor.requires_grad)
                for tensor in tensors
            ], structure
        if self._waits:  # a caller may refill its input tensor
            return [tensor.to(here, copy=True).detach() for tensor in tensors], structure
        return [
            t if t.device == here and not t.requires_grad else t.to(here).detach() for t in tensors
        ], structure

    def hand_on(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return what the stage above gets of the outputs of a forward."""
        tensors = [
            dense(narrowed(tensor.detach(), self._dtype)).requires_grad_(tensor.requires_grad)
            for tensor in outputs
        ]
        if not all(tensor.requires_grad for tensor in tensors):
            tensors = apart_from(self._module.buffers(), tensors)  # a forward may change them
        return tensors

    def send_back(self, leaves: list[Tensor]) -> list[Tensor | None]:
        """Take the gradients of the inputs of a backward; return what the stage below gets."""
        if not self._stage_index:
            return [None] * len(leaves)
        return [self._sent(leaf) for leaf in leaves]

    def _sent(self, leaf: Tensor) -> Tensor | None:
        grad, leaf.grad = leaf.grad, None
        if grad is None:
            return None
        grad = self._error_gradient.outgoing(grad, self._stage_index, self._num_stages)
        return dense(narrowed(grad, self._dtype))
