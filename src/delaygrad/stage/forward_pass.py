"""The forward of a batch on one stage, and the same forward again.

    leaf --> clone --> module --> output --> detached, handed on
     |                              |
    .grad <------- backward ------ root

The clone protects the received tensor, which the neighbour or a checkpoint still needs, from a
stage whose first layer works in place (``nn.ReLU(inplace=True)``). On the last stage the output is
the loss.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from delaygrad.boundary import Tree, flatten, unflatten
from delaygrad.random_stream import RandomStream
from delaygrad.stage.added_losses import Collecting, total
from delaygrad.stage.boundaries import Boundaries
from delaygrad.stage.losses import StageLoss
from delaygrad.stage.references import References
from delaygrad.stash import (
    ParameterVersion,
    Pending,
    as_it_was,
    require_same_outputs,
    saving_rounded,
)

_NOTHING = nullcontext()  # making one takes longer than entering it


class ForwardPass:
    """Run the module of one stage on a batch, and keep the ends of the graph with the batch.

    Args:
        module: the stage's network.
        stage_index: its own.
        boundaries: of the stage.
        random: the stage's stream.
        device: where the stage computes.
        loss: of the last stage; None elsewhere.
        copies: whether the module gets copies of the inputs.
        stash_dtype: in which graphs save activations; None: as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        stage_index: int,
        boundaries: Boundaries,
        random: RandomStream,
        device: torch.device,
        *,
        loss: StageLoss | None,
        copies: bool,
        stash_dtype: torch.dtype | None,
    ) -> None:
        self._module, self._boundaries, self._loss = module, boundaries, loss
        self._random, self._device = random, device
        self._copies, self._stash_dtype = copies, stash_dtype
        self._references = References(module, stage_index)

    def run(self, batch: Pending) -> Tree:
        """Run the forward with the parameters of the batch; return what is handed on.

        Raises:
            StageError: an output is not made of tensors, or the stage trains a tensor that is not
                its own.
        """
        weights = [] if batch.weights is None else batch.weights.parameters()
        with Collecting() as added:
            if batch.weights is None and not self._stash_dtype:
                outputs = self._compute(batch)  # the parameters are met as they are
            else:
                exact = [*weights, *self._module.buffers()] if self._stash_dtype else []
                with _installed(batch.weights), saving_rounded(self._stash_dtype, exact):
                    outputs = self._compute(batch)
        tensors, structure = flatten(outputs) if self._loss is None else ([outputs], None)
        if added:
            batch.added = total(added, batch.portion)
        self._references.look(
            [*tensors, *added], stand_ins=weights, inputs=batch.inputs, targets=batch.targets
        )
        if self._loss is not None:
            batch.roots = [outputs]
            return outputs.detach()
        batch.roots = [tensor if tensor.requires_grad else None for tensor in tensors]
        return unflatten(structure, self._boundaries.hand_on(tensors))

    def again(self, batch: Pending) -> None:
        """Run the forward of a batch in flight as it was; change nothing but its graph.

        Raises:
            StageError: the outputs differ from the first ones.
        """
        assert batch.random_state is not None
        here = self._random.replaying(batch.random_state)
        with here, as_it_was(self._module, batch, self._device):
            require_same_outputs(batch.checksum, self.run(batch))

    def _compute(self, batch: Pending) -> Any:
        """Return what the module returns; on the last stage, the loss."""
        inputs = [leaf.clone() for leaf in batch.inputs] if self._copies else batch.inputs
        outputs = self._module(unflatten(batch.structure, inputs))
        return outputs if self._loss is None else self._loss(outputs, batch.targets, batch.share)


def _installed(weights: ParameterVersion | None) -> AbstractContextManager[None]:
    return _NOTHING if weights is None else weights.installed()
