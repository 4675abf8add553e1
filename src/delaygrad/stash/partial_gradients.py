"""Gradients that wait for further micro-batches, kept outside ``.grad`` between two steps.

The first backward after an update replaces the gradients; later ones add to them. A stage may
update in the middle of a step. When the step ends, the first parts of the next batch have gone
backward already. Users often clear ``.grad`` between steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PartialGradients:
    """The partial sums of one stage.

    Within a step they are in ``.grad``, where autograd adds to them. Between two steps they are
    here, and ``.grad`` is what was applied last.

    Args:
        module: the stage's network.
        optimizer: of the stage; it may be given more parameters later.
        splits_batches: whether the stage updates before the end of a step.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer | None, *, splits_batches: bool
    ) -> None:
        self._module, self._optimizer = module, optimizer
        self._splits_batches = splits_batches
        self._parameters = list(module.parameters())
        self._clear = False  # whether all .grad are None
        self.count = 0
        """Backward passes since the last update."""
        self._aside: list[tuple[nn.Parameter, Tensor | None]] = []
        self._applied: list[tuple[nn.Parameter, Tensor | None]] = []

    def clear(self) -> None:
        """Let all ``.grad`` be None."""
        self._clear = True
        for parameter in self._parameters:
            parameter.grad = None
        for group in [] if self._optimizer is None else self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def begin(self) -> None:
        """Let a backward begin: what was applied goes, if a forward has not cleared it."""
        if not self.count and not self._clear:  # a drain
            self.clear()
        self._clear = False

    def end(self) -> None:
        """Begin a new sum: the optimizer has applied what ``.grad`` holds."""
        self.count, self._clear = 0, False
        if self._splits_batches:
            self._applied = self._present()

    def set_aside(self) -> None:
        """Keep what is summed up, and let ``.grad`` be what was applied last."""
        if self.count:
            self._aside = self._present()
            for parameter, _ in self._aside:
                parameter.grad = None
            for parameter, gradient in self._applied:
                parameter.grad = gradient

    def take_up(self) -> None:
        """Put back what was set aside."""
        for parameter, gradient in self._aside:
            parameter.grad = gradient
        self._aside = []

    def forget_applied(self) -> None:
        """Let ``.grad`` be None until something is applied: a fill follows."""
        self._applied = []

    def state_dict(self) -> dict[str, Any]:
        """Return copies, by parameter name."""
        if not self.count:
            return {"count": 0, "gradients": {}}
        aside = {id(parameter): gradient for parameter, gradient in self._aside or self._present()}
        return {
            "count": self.count,
            "gradients": {
                name: gradient.clone()
                for name, parameter in self._module.named_parameters()
                if (gradient := aside.get(id(parameter))) is not None
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set aside what ``state_dict`` returned."""
        self.count, self._applied = state["count"], []
        self._aside = [
            (parameter, state["gradients"][name].to(parameter.device, copy=True))
            for name, parameter in self._module.named_parameters()
            if name in state["gradients"]
        ]

    def _present(self) -> list[tuple[nn.Parameter, Tensor | None]]:
        return [(parameter, parameter.grad) for parameter in self._module.parameters()]
