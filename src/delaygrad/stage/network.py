"""What a stage is told about its network: the loss, the optimizer, the device, the mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)``: a 0-d tensor, the mean over the batch by custom."""

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""``make_optimizer(params)``: any ``torch.optim`` optimizer over a stage's parameters."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the block, the module and all its parts are in evaluation mode."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's parameters are, or its buffers, or else the CPU."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
