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
        delay: updates between the forward of the oldest gradient and this update, by the
            schedule; less in the first updates.
        live: the stage's trainable parameters by name; their ``.grad`` is what will be applied.
        met: parameters that the forward of the newest gradient met, by name; the live values on
            a stage without delay.
        optimizer: the user's.
        norm: of the gradients of all stages, as ``ClipNorm`` defines it; None where no
            transformation of the chain is a ``ClipNorm``.
        state: what this transformation keeps from update to update, in plain containers; saved
            in checkpoints.
    """

    index: int
    delay: int
    live: Mapping[str, nn.Parameter]
    met: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    norm: Tensor | None = None
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Update(Axis):
    """A transformation of an update. In a chain, ``before`` runs in order, ``after`` in reverse."""

    def before(self, step: Step) -> None:
        """Change gradients or the optimizer's options before the optimizer steps."""

    def after(self, step: Step) -> None:
        """Undo a change of options, or change the parameters, after the optimizer has stepped."""
