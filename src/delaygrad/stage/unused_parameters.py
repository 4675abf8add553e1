"""Warn once about parameters that get no gradient and so do not train."""

from __future__ import annotations

import warnings

from torch import nn

from delaygrad.errors import DelaygradWarning

_UPDATES = 50


class UnusedParameters:
    """Warn of trainable parameters that had no gradient in any of the first 50 updates.

    Args:
        module: the stage's network.
        stage_index: its own, for the message.
    """

    def __init__(self, module: nn.Module, stage_index: int) -> None:
        self._stage_index = stage_index
        self._unused = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._updates = 0

    def look(self) -> None:
        """Look at the gradients of an update; free of cost once every parameter has had one."""
        if not self._unused:
            return
        self._unused = {n: p for n, p in self._unused.items() if p.grad is None}
        self._updates += 1
        if self._updates < _UPDATES:
            return
        names = [name for name, parameter in self._unused.items() if parameter.requires_grad]
        self._unused = {}
        if names:
            warnings.warn(
                f"parameters had no gradient in {_UPDATES} updates, so they do not train (stage: "
                f"{self._stage_index}, parameters: {', '.join(names)}); use them in forward, or "
                "freeze them with requires_grad_(False)",
                DelaygradWarning,
                stacklevel=7,  # who calls pipe.step
            )
