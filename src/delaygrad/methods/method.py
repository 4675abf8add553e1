"""What a method is: a choice on a few axes.

    axis             question                                              here
    schedule         which batch goes forward, which backward, when?       ``schedule``
    linearisation    what is kept of a batch until its backward?           ``recompute``,
                                                                           ``stash_dtype``
    error gradient   what happens to it on its way down?                   ``outgoing_gradient``,
                                                                           ``boundary_dtype``
    update           how many micro-batches make one?                      ``schedule``

Forward and backward use the parameters of the forward (the exact rule of ``delaygrad.stage``), and
the optimizer is the user's. Axes on which the methods here do not yet differ have no field.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import Tensor

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
