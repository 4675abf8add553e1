"""What happens around a stage's optimizer step: a chain of small transformations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.methods.axes.axis import Axis


@dataclass(kw_only=True)
class Step:
    """One update of one stage, as an ``Update`` sees it.

    Attributes:
        index: updates of this stage before this one.
        delay: updates between the forward of the oldest gradient in it and this update, by the
            schedule; less in the first updates.
        live: the stage's trainable parameters by name; their ``.grad`` is what will be applied.
        met: what the forward of the newest gradient in it met, by name; the live values where the
            stage has no delay.
        optimizer: the user's.
        state: what this transformation keeps from update to update, in plain containers; saved
            in checkpoints.
    """

    index: int
    delay: int
    live: Mapping[str, nn.Parameter]
    met: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Update(Axis):
    """A transformation of a stage's update; those of a chain run in order, then back."""

    def before(self, step: Step) -> None:
        """Change gradients or the optimizer's options before the optimizer steps."""

    def after(self, step: Step) -> None:
        """Undo a change of options, or change the parameters, after the optimizer has stepped."""
