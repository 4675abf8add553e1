"""Where a stage's error gradient comes from, and what the stage sends to the stage below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from delaygrad.methods.axes.axis import Axis


class LocalGradients(Protocol):
    """Make the error gradients of one stage in its own forward."""

    def gradients(self, outputs: list[Tensor | None], targets: Any) -> list[Tensor | None]:
        """Return the error gradients of detached outputs; None where an output is None."""

    def learn(
        self,
        outputs: list[Tensor | None],
        targets: Any,
        grad_outputs: list[Tensor | None] | None,
    ) -> None:
        """Compare with the error gradients that the stage above has sent for the same outputs."""

    def update(self) -> None:
        """Apply what was learned."""

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot in plain containers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""


@dataclass(frozen=True, repr=False)
class ErrorGradient(Axis):
    """The axis; use one of its subclasses, such as ``Received``."""

    @property
    def is_local(self) -> bool:
        """Whether a stage below the last makes its error gradient itself, and updates at once."""
        return False

    @property
    def sees_targets(self) -> bool:
        """Whether every stage needs the targets."""
        return False

    def make_local(self, device: torch.device) -> LocalGradients:
        """Return the maker of a stage's error gradients; only if ``is_local``."""
        raise NotImplementedError(f"{type(self).__name__} is received from the stage above")

    def outgoing(self, grad_input: Tensor, stage_index: int, num_stages: int) -> Tensor:
        """Return what a stage sends to the stage below in place of its error gradient.

        Args:
            grad_input: the loss's gradient for one input tensor of the stage.
            stage_index: the sender, 1..K-1.
            num_stages: K.

        Returns:
            A tensor of the same shape.
        """
        return grad_input


@dataclass(frozen=True, repr=False)
class Received(ErrorGradient):
    """The error gradient of the stage above, as it is."""


@dataclass(frozen=True, repr=False)
class Shrunk(ErrorGradient):
    """The error gradient of the stage above, multiplied by ``beta`` at every boundary.

    Stage k applies beta^(K-1-k) times its gradient.

    Args:
        beta: above 0, at most 1.

    Raises:
        ValueError: ``beta`` is out of range.

    References:
        Zhuang et al., "Fully Decoupled Neural Network Learning Using Delayed Gradients", IEEE TNNLS
        2021, arXiv:1906.09108. Differs: none known.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be above 0 and at most 1 (beta: {self.beta})")

    def outgoing(self, grad_input: Tensor, stage_index: int, num_stages: int) -> Tensor:
        return grad_input * self.beta
