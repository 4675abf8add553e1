"""A method's chain of transformations around a stage's optimizer step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.methods.axes import Step, Update
from delaygrad.stash import ParameterVersion


class UpdateChain:
    """Run the transformations of one stage, and keep their states.

    Args:
        updates: in order; none leaves the optimizer's step as it is.
        module: the stage's network.
        delay: of the stage, in updates.
    """

    def __init__(self, updates: Sequence[Update], module: nn.Module, delay: int) -> None:
        self._updates, self._module, self._delay = updates, module, delay
        self._states: list[dict[str, Any]] = [{} for _ in updates]
        self._newest: ParameterVersion | None = None  # of a gradient that is not applied yet

    def meet(self, version: ParameterVersion) -> None:
        """Note what the forward of the newest gradient met; without it, the live parameters."""
        if self._updates:
            self._newest = version

    def step(
        self, optimizer: torch.optim.Optimizer, index: int, norm: Tensor | None = None
    ) -> None:
        """Let the optimizer step.

        Args:
            optimizer: of the stage.
            index: updates before this one.
            norm: of the gradients of all stages, for ``ClipNorm``.
        """
        if not self._updates:
            optimizer.step()
            return
        live = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        met = live if self._newest is None else self._newest.named()
        self._newest = None
        steps = [
            Step(
                index=index,
                delay=self._delay,
                live=live,
                met=met,
                optimizer=optimizer,
                norm=norm,
                state=state,
            )
            for state in self._states
        ]
        with torch.no_grad():
            for update, step in zip(self._updates, steps, strict=True):
                update.before(step)
        optimizer.step()
        with torch.no_grad():
            for update, step in reversed(list(zip(self._updates, steps, strict=True))):
                update.after(step)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return a snapshot of the states, in order."""
        return copy.deepcopy(self._states)

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from what ``state_dict`` returned."""
        self._states = copy.deepcopy(states)
