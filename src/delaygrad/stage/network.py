"""Checks of what the user gives to a stage: the loss, the optimizer, the device, the mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from delaygrad.errors import StageError
from delaygrad.optimizers import MakeOptimizer, is_of_nothing, joined
from delaygrad.stage.modes import require_modes

LossFunction: TypeAlias = Callable[[Any, Any], Tensor | tuple[Tensor, Any]]
"""``loss_fn(outputs, targets)``: a 0-d tensor, usually the mean over the batch; or a pair of it and
extras, which the pipeline keeps for the user."""


def require_trainable(
    module: nn.Module, stage_index: int, *, is_delayed: bool, moves: bool
) -> None:
    """Raise unless a stage can be trained.

    Args:
        module: the stage's network.
        stage_index: its own.
        is_delayed: its forwards meet other parameters than the live ones, or updates come before
            their backward passes.
        moves: updates give parameters new memory.

    Raises:
        StageError: a wrapper averages it, two tensors share memory, a part ignores
            ``eval()``, or a lazy part has no parameters yet.
    """
    if is_delayed:
        require_no_replicas(module, stage_index)
    if moves:
        require_no_aliases(module, stage_index)
    require_modes(module, stage_index)
    require_initialised(module, stage_index)


def require_no_replicas(module: nn.Module, stage_index: int) -> None:
    """Raise if a wrapper averages gradients: delayed stages bypass wrappers.

    Raises:
        StageError: a part of the module is a ``DistributedDataParallel``.
    """
    if any(isinstance(part, DistributedDataParallel) for part in module.modules()):
        raise StageError(
            "DistributedDataParallel averages gradients in hooks on the parameters, which a stage "
            "with a delay does not run; leave it out, and give DistributedPipeline a mesh of "
            "stages and replicas (docs/your-own-loop.md has an example)"
        )


def require_no_aliases(module: nn.Module, stage_index: int) -> None:
    """Raise if a trained parameter lies in the memory of another tensor of the stage.

    The first update of a stage with a delay gives the parameter new memory, and unties the two. Two
    trained parameters that are the same piece of memory move together.

    Raises:
        StageError: two parameters, or a parameter and a buffer, overlap in memory.
    """
    named = {id(t): (n, t) for n, t in (*module.named_parameters(), *module.named_buffers())}
    by_memory: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in named.values():
        if tensor.layout == torch.strided and not (tensor.is_meta or is_lazy(tensor)):
            by_memory.setdefault(_memory_of(tensor), []).append((name, tensor))
    for first, second in (p for held in by_memory.values() for p in combinations(held, 2)):
        is_trained = [tensor.requires_grad for _, tensor in (first, second)]
        moves_together = all(is_trained) and first[1].is_set_to(second[1])
        if any(is_trained) and not moves_together and _overlap(first[1], second[1]):
            raise StageError(
                f"two tensors of a stage with a delay share memory (stage: {stage_index}, names: "
                f"{first[0]}, {second[0]}), which its first update would end; register one "
                "Parameter under both names, or give each a copy of its own (.clone())"
            )


def _overlap(first: Tensor, second: Tensor) -> bool:
    (a, c), (b, d) = (_extent(first), _extent(second))
    return a < d and b < c


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first and the last address but one of a tensor's elements."""
    if not tensor.numel():
        return 0, 0
    last = sum(step * (size - 1) for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def by_caller(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """In the place of ``make_optimizer``: the caller's own optimizer steps, between two steps."""
    raise NotImplementedError


def make_own_optimizer(
    make_optimizer: MakeOptimizer, parameters: list[nn.Parameter], stage_index: int
) -> torch.optim.Optimizer | None:
    """Return a stage's optimizer; None if it has no parameters, or the caller has the optimizer.

    None also where all parameters are frozen, and ``make_optimizer`` takes none of them.

    Raises:
        StageError: ``make_optimizer`` is no function, or returns no optimizer, or the optimizer
            has parameters of another stage.
    """
    remedy = "give a function of a stage's parameters: lambda params: torch.optim.SGD(params)"
    if isinstance(make_optimizer, torch.optim.Optimizer) or not callable(make_optimizer):
        raise StageError(
            f"make_optimizer is no function (given: {_kind(make_optimizer)}), and each stage needs "
            f"an optimizer of its own; {remedy}"
        )
    if not parameters or make_optimizer is by_caller:
        return None
    trains = any(parameter.requires_grad for parameter in parameters)
    try:
        optimizer = joined(make_optimizer(list(parameters)))
    except ValueError as error:
        if not is_of_nothing(error):
            raise
        if not trains:
            return None
        raise StageError(
            f"make_optimizer has made an optimizer of an empty list (stage: {stage_index}); a "
            'group may be empty: torch.optim.Muon([{"params": matrices}])'
        ) from error
    if optimizer == [] and not trains:
        return None
    if not hasattr(optimizer, "param_groups"):
        raise StageError(
            f"make_optimizer must return an optimizer (stage: {stage_index}, returned: "
            f"{_kind(optimizer)}); {remedy}"
        )
    own = set(map(id, parameters))
    if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise StageError(
            f"the optimizer has parameters that are not the stage's (stage: {stage_index}); "
            "let make_optimizer(params) make a new one over those that it is given"
        )
    return cast(torch.optim.Optimizer, optimizer)


def require_no_gradients(parameters: Iterable[nn.Parameter], stage_index: int) -> None:
    """Raise if a parameter of a stage without optimizer has a gradient.

    Raises:
        StageError: it does.
    """
    if any(parameter.grad is not None for parameter in parameters):
        raise StageError(
            f"a parameter was unfrozen in a stage that has no optimizer (stage: {stage_index}); "
            "unfreeze it before you make the pipeline, or give its optimizer frozen parameters too"
        )


def require_initialised(module: nn.Module, stage_index: int) -> None:
    """Raise if a lazy module has not seen an input yet.

    Raises:
        StageError: it has not.
    """
    lazy = [name for name, p in (*module.named_parameters(), *module.named_buffers()) if is_lazy(p)]
    if lazy:
        raise StageError(
            f"a lazy module has no parameters yet (stage: {stage_index}, parameter: {lazy[0]}); "
            "call the model once on a batch before you make the pipeline"
        )


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def require_one_batch(error: Exception, inputs: Any) -> None:
    """Raise a clearer error if a network was given the whole batch of a ``DataLoader``.

    Raises:
        StageError: the inputs are a list or a tuple, which the network does not accept.
    """
    if type(inputs) in (list, tuple) and isinstance(error, TypeError | AttributeError):
        raise StageError(
            f"the network does not take a {type(inputs).__name__} of {len(inputs)} as its inputs "
            f"({type(error).__name__}: {error}); a DataLoader's batch is [inputs, targets]: "
            "give both apart: step(*batch)"
        ) from error


def forget_casts(device_type: str) -> None:
    """Clear autocast's cache of cast parameters after an optimizer has written into them.

    Autocast keeps casts until its block ends, and the block may enclose a whole training loop.
    """
    if torch.is_autocast_enabled(device_type):
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
    """Return the loss of what ``loss_fn`` returned: a loss, or a pair of a loss and extras.

    Raises:
        StageError: it is not a 0-d tensor.
    """
    if isinstance(loss, tuple) and len(loss) == 2:
        loss = loss[0]
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise StageError(f"loss_fn must return a 0-d tensor (returned: {found}); take its mean")
    return loss


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the block, the module and all its parts are in evaluation mode.

    Afterwards each part is in its previous mode, set by its own ``train``, which may do more than
    set a flag.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        try:
            _put_back(modes)
        except KeyboardInterrupt:  # halfway
            _put_back(modes)
            raise


def _put_back(modes: list[tuple[nn.Module, bool]]) -> None:
    for part, training in modes:
        if part.training != training:
            part.train(training)
    for part, training in modes:
        part.training = training


def apart_from(owned: Iterable[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Copy the tensors that share memory with a tensor that the stage owns and will change."""
    own = {_memory_of(tensor) for tensor in owned}
    return [
        tensor.detach().clone().requires_grad_(tensor.requires_grad)
        if _memory_of(tensor) in own
        else tensor
        for tensor in tensors
    ]


def _memory_of(tensor: Tensor) -> int:
    strided = tensor.layout == torch.strided  # other layouts have no single block of memory
    return tensor.untyped_storage().data_ptr() if strided else id(tensor)


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's parameters are, or its buffers, or else the CPU."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def go_backward(roots: list[Tensor | None], grads: list[Tensor | None] | None) -> None:
    """Run autograd from the ends of a graph that have a gradient; the loss needs none."""
    if grads is None:
        torch.autograd.backward([root for root in roots if root is not None])
        return
    ends = [
        (root, grad.to(root.device, root.dtype))
        for root, grad in zip(roots, grads, strict=True)
        if root is not None and grad is not None
    ]
    if ends:
        torch.autograd.backward([root for root, _ in ends], [grad for _, grad in ends])
