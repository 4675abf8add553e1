"""Compare stages with the model that they were cut from, on a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from delaygrad.boundary import Tree, flatten, unflatten
from delaygrad.errors import PartitionError, StageError
from delaygrad.partition.graph.capture import call_model
from delaygrad.partition.graph.network import Network
from delaygrad.partition.graph.undisturbed import in_mode, undisturbed

__all__ = ["check", "checked_stages", "difference"]

# Equal operations in equal order give equal bits; kernels of accelerators may add in any order.
_TOLERANCE = 1e-4


def check(stages: Sequence[nn.Module], model: nn.Module, sample_inputs: Tree) -> float:
    """Compare stages with their model on a sample, in training and in evaluation mode.

    Outputs, changed buffers and gradients of parameters are compared in training mode, from one
    random state; outputs in evaluation mode, also for a batch of one sample and for sizes that are
    one smaller, where the model takes those. Parameters, buffers, gradients and random states stay
    as they are. Use it for stages made by hand; `split` has checked its own.

    Args:
        stages: in order; they share the model's modules, or hold equal copies.
        model: the network.
        sample_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
    Returns:
        difference: the largest absolute one; 0.0 where all bits are equal.
    Raises:
        PartitionError: they differ by more than rounding; says where.
    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> check([net[:1], net[1:]], net, torch.ones(3, 2))
        0.0
    """
    largest = 0.0
    for mode in (True, False):
        largest = max(largest, difference(stages, model, sample_inputs, training=mode))
    return largest


def checked_stages(network: Network, starts: Sequence[int]) -> list[nn.Module]:
    """Build the stages of a captured network, and make sure that they are the model.

    Where the model does something else between its blocks in the mode that it is not in, that is
    captured too.

    Args:
        network: the captured model.
        starts: number of the first call of stages 1 … K-1.
    Raises:
        PartitionError: they differ from the model, whatever is captured.
    """
    model, inputs = network.model, network.inputs
    stages: list[nn.Module] = list(network.stages(starts))
    difference(stages, model, inputs, training=model.training)
    try:
        difference(stages, model, inputs, training=not model.training)
    except PartitionError:
        network.capture_other_mode()
        stages = list(network.stages(starts))
        for mode in (True, False):
            difference(stages, model, inputs, training=mode)
    return stages


def difference(
    stages: Sequence[nn.Module], model: nn.Module, sample_inputs: Tree, *, training: bool
) -> float:
    """Compare in one mode; arguments, return and errors as `check`'s."""
    largest = 0.0
    with ExitStack() as kept:
        for module in (model, *stages):
            kept.enter_context(in_mode(module, training))
        name = "training" if training else "evaluation"
        largest = _compare(stages, model, sample_inputs, f"{name} mode", gradients=training)
        if not training:
            for inputs, which in _other_sizes(sample_inputs):
                found = _compare(stages, model, inputs, f"evaluation mode, {which}", may_fail=True)
                largest = max(largest, found)
    return largest


def _compare(
    stages: Sequence[nn.Module],
    model: nn.Module,
    inputs: Tree,
    where: str,
    *,
    gradients: bool = False,
    may_fail: bool = False,
) -> float:
    def staged(value: Tree) -> Any:
        for stage in stages:
            value = stage(value)
        return value

    try:
        with undisturbed([model, *stages], inputs):
            expected = _observe(lambda value: call_model(model, value), [model], inputs, gradients)
    except Exception:
        if may_fail:
            return 0.0  # the model does not take these sizes either
        raise
    try:
        with undisturbed([model, *stages], inputs):
            found = _observe(staged, stages, inputs, gradients)
    except StageError as error:
        if may_fail and "smaller batch" not in where:
            return 0.0  # not silent: the stages say so
        raise PartitionError(
            f"the stages fail where the model does not ({where}): {error}"
        ) from error
    largest = 0.0
    for kind, values in expected.items():
        ours = found[kind]
        if kind == "outputs" and values.keys() != ours.keys():
            raise PartitionError(
                f"the stages return something else than the model ({where}; stages: {list(ours)}, "
                f"model: {list(values)}); {_REMEDY}"
            )
        for name in (name for name in values if name in ours):
            largest = max(largest, _apart(ours[name], values[name], f"{kind} {name!r}", where))
    return largest


_REMEDY = (
    "name the module whose forward differs in blocks=[...], or correct the stages made by hand "
    "(docs/your-own-network.md)"
)


def _apart(ours: Any, theirs: Any, name: str, where: str) -> float:
    if ours is None or theirs is None:
        if ours is theirs:
            return 0.0
        holder = "model" if ours is None else "stages"
        raise PartitionError(f"only the {holder} compute {name} ({where}); {_REMEDY}")
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise PartitionError(
            f"{name} of the stages is not like the model's ({where}; stages: {ours.dtype} "
            f"{list(ours.shape)}, model: {theirs.dtype} {list(theirs.shape)}); {_REMEDY}"
        )
    if torch.equal(ours, theirs):
        return 0.0
    ours, theirs = ours.detach().double(), theirs.detach().double()
    gap = (
        (ours - theirs).abs().nan_to_num(0.0 if torch.equal(ours.isnan(), theirs.isnan()) else 9e9)
    )
    largest = float(gap.max())
    if largest > _TOLERANCE * (1.0 + float(theirs.abs().nan_to_num().max())):
        raise PartitionError(
            f"{name} of the stages differs from the model's ({where}; by at most {largest:.3g}); "
            f"{_REMEDY}"
        )
    return largest


def _observe(
    forward: Callable[[Tree], Any], modules: Sequence[nn.Module], inputs: Tree, gradients: bool
) -> dict[str, dict[str, Any]]:
    """Run forward from one random state; return outputs, buffers and gradients by name."""
    torch.manual_seed(0)
    tensors, structure = flatten(inputs)
    given = unflatten(structure, [tensor.detach().clone() for tensor in tensors])
    with torch.set_grad_enabled(gradients):
        outputs = forward(given)
        leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
        named = {f"{number}": leaf.detach() for number, leaf in enumerate(leaves)}
        seen = {"outputs": named}
        if not gradients:
            return seen
        parameters = {name: p for m in modules for name, p in m.named_parameters()}
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        ends = [leaf for leaf in leaves if leaf.requires_grad]
        torch.manual_seed(1)
        weights = [torch.rand_like(end) for end in ends]  # a plain sum of a softmax has no slope
        found: Sequence[Any] = [None] * len(trained)
        if ends and trained:
            found = torch.autograd.grad(ends, list(trained.values()), weights, allow_unused=True)
        seen["the gradient of"] = dict(zip(trained, found, strict=True))
    buffers = {name: b.clone() for m in modules for name, b in m.named_buffers()}
    return {**seen, "buffer": buffers}


def _other_sizes(inputs: Tree) -> Iterator[tuple[Tree, str]]:
    """Yield the batch with one sample, and with every size one smaller where it can be."""
    tensors, structure = flatten(inputs)
    batch = next((tensor.shape[0] for tensor in tensors if tensor.dim()), 0)
    if batch > 1:
        fewer = [t[:1] if t.dim() and t.shape[0] == batch else t for t in tensors]
        yield unflatten(structure, fewer), "a batch of one"
        fewer = [t[:-1] if t.dim() and t.shape[0] == batch else t for t in tensors]
        yield unflatten(structure, fewer), "a smaller batch"
    lengths = {tensor.shape[1] for tensor in tensors if tensor.dim() > 1}
    for length in sorted(lengths):
        if length > 2:
            shorter = [
                t.narrow(1, 0, length - 1) if t.dim() > 1 and t.shape[1] == length else t
                for t in tensors
            ]
            yield unflatten(structure, shorter), f"length {length - 1} in the place of {length}"
