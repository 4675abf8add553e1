"""What a stage is told about its network: the loss, the optimizer, the device, the mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from delaygrad.errors import StageError

LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets)``: a 0-d tensor, the mean over the batch by custom."""

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""``make_optimizer(params)``: any ``torch.optim`` optimizer over a stage's parameters."""


def require_no_replicas(module: nn.Module) -> None:
    """Raise if gradients are to be averaged by a wrapper, which would not see delayed ones.

    Raises:
        StageError: a part of the module is a ``DistributedDataParallel``.
    """
    if any(isinstance(part, DistributedDataParallel) for part in module.modules()):
        raise StageError(
            "DistributedDataParallel averages gradients in hooks on the parameters, which a stage "
            "with a delay does not run; average them in a step pre-hook of its optimizer "
            "(docs/semantics.md has an example)"
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the block, the module and all its parts are in evaluation mode.

    Afterwards each is in its mode again, by its own ``train``: some do more there than set a flag.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            if part.training != training:
                part.train(training)
        for part, training in modes:
            part.training = training


def apart_from(owned: Iterable[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Copy those tensors that share memory with one that a stage owns, and will change."""
    own = {_memory_of(tensor) for tensor in owned}
    return [
        tensor.detach().clone().requires_grad_(tensor.requires_grad)
        if _memory_of(tensor) in own
        else tensor
        for tensor in tensors
    ]


def _memory_of(tensor: Tensor) -> int:
    strided = tensor.layout == torch.strided  # others have several blocks, or none to speak of
    return tensor.untyped_storage().data_ptr() if strided else id(tensor)


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's parameters are, or its buffers, or else the CPU."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")
