"""What a method is: a choice on a few axes.

    axis             question                                              here
    schedule         which batch goes forward, which backward, when?       ``schedule``
    error gradient   what happens to it on its way down?                   ``outgoing_gradient``

Forward and backward use the parameters of the forward (the exact rule of ``delaygrad.stage``), and
the optimizer is the user's. Axes on which the methods here do not yet differ have no field.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from delaygrad.schedule import Schedule


class Method(ABC):
    """An immutable choice; compare two with ``==``, print one to see its settings."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the literature calls it, in lower case."""

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """Which batch each stage takes forward and backward in each iteration."""

    def outgoing_gradient(self, grad_input: Tensor, stage_index: int, num_stages: int) -> Tensor:
        """Return what a stage sends to the stage below in place of its error gradient.

        Args:
            grad_input: the loss's gradient for one input tensor of the stage; same shape.
            stage_index: the sender, 1..K-1.
            num_stages: K.
        """
        return grad_input
