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


def make_own_optimizer(
    make_optimizer: MakeOptimizer, parameters: list[nn.Parameter], stage_index: int
) -> torch.optim.Optimizer | None:
    """Return a stage's optimizer; None if it has no parameters.

    Raises:
        StageError: the optimizer has others than these, which another stage would move too.
    """
    if not parameters:
        return None
    optimizer = make_optimizer(list(parameters))
    own = set(map(id, parameters))
    if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise StageError(
            f"the optimizer has parameters that are not the stage's (stage: {stage_index}); "
            "let make_optimizer(params) make a new one over those that it is given"
        )
    return optimizer


def forget_casts(device: torch.device) -> None:
    """Let autocast cast parameters anew, now that an optimizer has written into them.

    It keeps casts until its block ends, and the block may go around a whole training loop.
    """
    if torch.is_autocast_enabled(device.type):
        torch.clear_autocast_cache()


def require_loss(loss_fn: LossFunction | None, stage_index: int) -> LossFunction:
    """Return the loss of the last stage.

    Raises:
        StageError: there is none, or it has parameters.
    """
    if loss_fn is None:
        raise StageError(f"the last stage needs a loss_fn (stage: {stage_index})")
    if isinstance(loss_fn, nn.Module) and any(p.requires_grad for p in loss_fn.parameters()):
        raise StageError(
            "loss_fn has parameters, which no optimizer would train; make them part of the "
            "last stage"
        )
    return loss_fn


def require_scalar(loss: Any) -> Tensor:
    """Return what ``loss_fn`` returned.

    Raises:
        StageError: it is not a 0-d tensor.
    """
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise StageError(f"loss_fn must return a 0-d tensor (returned: {found}); take its mean")
    return loss


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
