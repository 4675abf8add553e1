"""What a method is: a choice on a few axes.

    axis             question                                              here
    schedule         which batch goes forward, which backward, when?       ``schedule``
    linearisation    what is kept of a batch until its backward, and which ``recompute``,
                     parameters does it meet?                              ``stash_dtype``,
                                                                           ``weights``
    error gradient   what happens to it on its way down?                   ``outgoing_gradient``,
                                                                           ``boundary_dtype``
                     or is it predicted on the spot?                       ``make_synthesizer``
    update           how many micro-batches make one?                      ``schedule``

The optimizer is the user's. Axes on which the methods here do not yet differ have no field.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from delaygrad.schedule import Schedule


@dataclass(frozen=True, repr=False)
class Method(ABC):
    """An immutable choice; compare two with ``==``, print one to see what is not its default.

    Published methods are frozen dataclasses too; with ``repr=False`` they print like this one.
    """

    def __repr__(self) -> str:
        chosen = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(chosen)})"

    @property
    @abstractmethod
    def name(self) -> str:
        """What the literature calls it, in lower case."""

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """Which batch each stage takes forward and backward in each iteration."""

    @property
    def recompute(self) -> bool:
        """Whether a waiting batch keeps its inputs only, and runs its forward again.

        Exact: with the parameters and the random numbers of its forward. A stage whose lag is 0
        has no use for it and keeps its graph.
        """
        return False

    @property
    def stash_dtype(self) -> torch.dtype | None:
        """The type in which waiting graphs keep their activations; None is that of the graph."""
        return None

    @property
    def weights(self) -> Literal["stash", "live"]:
        """The parameters that a backward meets: those of its forward, or those of today."""
        return "stash"

    @property
    def synthesizes(self) -> bool:
        """Whether stages predict the error gradient of their output, and update at once."""
        return False

    @property
    def sees_labels(self) -> bool:
        """Whether what predicts the error gradient is shown the targets."""
        return False

    def make_synthesizer(self, shape: torch.Size) -> nn.Module:
        """Build what predicts the error gradient of an output tensor.

        Args:
            shape: of the tensor, the batch first.

        Returns:
            A module of ``(output, targets)``, whose result has the output's shape: for each sample
            the gradient of its own loss. ``targets`` is None unless it ``sees_labels``.

        Raises:
            StageError: not for a tensor of this shape.
        """
        raise NotImplementedError(f"{self.name} does not synthesize error gradients")

    def make_synthesizer_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimizer of a stage's synthesizers."""
        raise NotImplementedError(f"{self.name} does not synthesize error gradients")

    def delay(self, stage_index: int, num_stages: int) -> int:
        """Return how many updates old a gradient is when the stage applies it."""
        return 0 if self.synthesizes else self.schedule.delay(stage_index, num_stages)

    @property
    def boundary_dtype(self) -> torch.dtype | None:
        """The type in which float32 tensors cross boundaries; None is their own."""
        return None

    def outgoing_gradient(self, grad_input: Tensor, stage_index: int, num_stages: int) -> Tensor:
        """Return what a stage sends to the stage below in place of its error gradient.

        Args:
            grad_input: the loss's gradient for one input tensor of the stage; same shape.
            stage_index: the sender, 1..K-1.
            num_stages: K.
        """
        return grad_input
