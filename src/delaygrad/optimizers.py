"""Several optimizers that look like one: what ``make_optimizer`` may return for a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], Optimizer | Sequence[Optimizer]]
"""``make_optimizer(params)``: an optimizer over parameters of a stage, or a list of several."""


class Optimizers(Optimizer):
    """Step several optimizers, one after the other.

    It shares the parameter groups and the state with its parts. So learning-rate schedulers,
    ``state_dict`` and hooks work on it as on one optimizer, and on each part.

    Args:
        parts: at least one; none may have a parameter of another.

    Example:
        >>> import torch
        >>> weight, bias = nn.Linear(3, 2).parameters()
        >>> both = Optimizers([torch.optim.SGD([weight], lr=1.0), torch.optim.AdamW([bias])])
        >>> [group["lr"] for group in both.param_groups]
        [1.0, 0.001]
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let each part step."""
        for part in self.parts:
            part.step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            end = first + len(part.param_groups)
            part.state, part.param_groups = self.state, self.param_groups[first:end]
            first = end


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that step."""
    return optimizer.parts if isinstance(optimizer, Optimizers) else [optimizer]


def joined(made: Any) -> Any:
    """Return one optimizer for what ``make_optimizer`` returned; anything else as it is."""
    several = isinstance(made, list | tuple) and made
    if not several or not all(isinstance(part, Optimizer) for part in made):
        return made
    return made[0] if len(made) == 1 else Optimizers(made)


def is_of_nothing(error: ValueError) -> bool:
    """Whether torch refused to make an optimizer of an empty list."""
    return "empty parameter list" in str(error)
