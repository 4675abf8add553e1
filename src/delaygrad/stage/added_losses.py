"""Losses that a stage adds in its own forward, such as that which balances a mixture of experts.

loss of a batch = loss_fn(outputs, targets) + what the stages add
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType
from typing import TypeAlias

import torch
from torch import Tensor

from delaygrad.errors import StageError
from delaygrad.stage.losses import FiniteLoss

_Losses: TypeAlias = list[Tensor]
_COLLECTED: ContextVar[_Losses | None] = ContextVar("_COLLECTED", default=None)


def add_loss(loss: Tensor) -> None:
    """Add a loss to that of the network; call it inside the forward of a stage, in any module.

    The stage's gradient, and the error gradient that it sends down, are then those of the sum. With
    micro-batches the loss is weighted by its part's share of the samples, as a mean is. In a
    prediction, and outside a pipeline, the call does nothing.

    Args:
        loss: 0-d, computed from what the stage computes. Multiply it by its weight before.

    Raises:
        StageError: the loss is not a 0-d tensor.

    Example:
        >>> class Expert(torch.nn.Linear):
        ...     def forward(self, x):
        ...         out = super().forward(x)
        ...         dg.add_loss(0.01 * out.square().mean())
        ...         return out
    """
    collected = _COLLECTED.get()
    if collected is None:
        return
    if not isinstance(loss, Tensor) or loss.dim():
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise StageError(f"add_loss takes a 0-d tensor (given: {found}); take its mean")
    collected.append(loss)


class Collecting:
    """A block within which ``add_loss`` is heard."""

    __slots__ = ("_token", "losses")

    def __enter__(self) -> _Losses:
        self.losses: _Losses = []
        self._token: Token[_Losses | None] = _COLLECTED.set(self.losses)
        return self.losses

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _COLLECTED.reset(self._token)


class AddedLosses:
    """What one stage has added to the loss of the newest batch.

    Args:
        micro_batches: parts of a batch.
        allow_nonfinite: let NaN and infinity pass.
    """

    def __init__(self, micro_batches: int, *, allow_nonfinite: bool) -> None:
        self._micro_batches = micro_batches
        self._finite = None if allow_nonfinite else FiniteLoss(micro_batches)
        self.newest: Tensor | None = None
        """Sum over the parts so far; None if nothing was added."""

    def note(self, batch_index: int, added: Tensor | None) -> None:
        """Note what a part has added.

        Raises:
            NonFiniteLossError: it is NaN or infinite.
        """
        if batch_index % self._micro_batches == 0:
            self.newest = None
        if added is None:
            return
        if self._finite is not None:
            self._finite.look(added)
        loss = added.detach()
        self.newest = loss if self.newest is None else self.newest + loss

    def settle(self) -> None:
        """Check the losses that are still on a device; waits for the device."""
        if self._finite is not None:
            self._finite.settle()


def total(losses: _Losses, share: float) -> Tensor | None:
    """Return the sum of a part's losses times its share; None if there is none."""
    if not losses:
        return None
    found = losses[0]
    for loss in losses[1:]:
        found = found + loss
    return found if share == 1 else found * share


def with_added(
    roots: list[Tensor | None],
    grads: list[Tensor | None] | None,
    added: Tensor | None,
    scale: Tensor | None = None,
) -> tuple[list[Tensor | None], list[Tensor | None] | None]:
    """Return the ends of a graph, what was added among them, and their gradients.

    Args:
        roots: without it.
        grads: None for a loss.
        added: of the same graph; None adds nothing.
        scale: of the loss.
    """
    if added is None or not added.requires_grad:
        return roots, grads
    if grads is None:
        grads = [None if root is None else torch.ones_like(root) for root in roots]
    return [*roots, added], [*grads, torch.ones_like(added) if scale is None else scale]
