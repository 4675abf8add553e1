"""Tensors that a stage trains but does not own: found by a walk over the graph of its forward.

A head that closes over the embedding of another stage (``lambda x: x @ embedding.weight``) sends
gradients to a parameter that has another delay and another optimizer, or no optimizer. The leaves
of the graph show this:

    leaf of the graph                                   belongs to
    a parameter of the stage, or its alias              the stage
    an input                                            the stage below
    what the targets hold                               the user's loss
    anything else                                       no part of this stage: an error

The walk sees what autograd has recorded in that forward. It does not find what is hidden from
autograd until the backward (reentrant checkpoints, custom functions that call autograd), nor uses
without a gradient (``detach``, ``no_grad``), nor uses in other forwards than the 1st, 2nd, 4th,
8th ...
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from delaygrad.boundary import flatten
from delaygrad.errors import DelaygradError, StageError


class References:
    """Look for leaves that a stage does not own.

    Args:
        module: the stage's network.
        stage_index: its own, for the message.
    """

    def __init__(self, module: nn.Module, stage_index: int) -> None:
        self._module, self._stage_index = module, stage_index
        self._forwards = 0

    def look(
        self,
        roots: Sequence[Tensor],
        *,
        stand_ins: Sequence[Tensor],
        inputs: Sequence[Tensor],
        targets: Any,
    ) -> None:
        """Walk over the graph of the 1st, 2nd, 4th, 8th ... forward; do nothing for the others.

        Args:
            roots: what the forward has returned.
            stand_ins: aliases of the stage's parameters; empty if the forward used the parameters.
            inputs: leaves.
            targets: of the last stage.

        Raises:
            StageError: a leaf is none of these.
        """
        self._forwards += 1
        if self._forwards & (self._forwards - 1):
            return
        own = {id(tensor) for tensor in (*(stand_ins or self._module.parameters()), *inputs)}
        beyond = list(_tensors_in(targets))
        own.update(map(id, beyond))
        for leaf in _leaves(roots, {tensor.grad_fn for tensor in beyond}):
            if id(leaf) not in own:
                raise StageError(self._message(leaf))

    def _message(self, leaf: Tensor) -> str:
        name = _name_of(leaf)
        called = "" if name is None else f", parameter: {name}"
        where = f"(stage: {self._stage_index}, shape: {tuple(leaf.shape)}{called})"
        if any(leaf is parameter for parameter in self._module.parameters()):
            return (
                f"the stage reaches a parameter of its own past its place in the module {where}; "
                "read it from the module in each forward, keep no other reference to it"
            )
        return (
            "the stage, or the loss, trains a tensor from outside, which has another delay and "
            f"optimizer, or none {where}; make it a parameter of this stage, hand on what is "
            "computed with it, or detach it"
        )


def _leaves(roots: Iterable[Tensor], seen: set[Node | None]) -> Iterator[Tensor]:
    """Yield the leaves of a graph; nodes that were seen before are skipped."""
    nodes = []
    for root in roots:
        if root.grad_fn is not None:
            nodes.append(root.grad_fn)
        elif root.requires_grad:
            yield root
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            yield getattr(node, "variable")  # noqa: B009 (typed on no node)
        nodes += [following for following, _ in node.next_functions if following is not None]


def _tensors_in(targets: Any) -> Iterator[Tensor]:
    try:
        yield from flatten(targets)[0]
    except DelaygradError:  # something of the user's own
        return


def _name_of(leaf: Tensor) -> str | None:
    """Return the longest name of the tensor in any module that exists."""
    modules = (thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module))
    names = [
        name
        for module in modules
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter is leaf
    ]
    return max(names, key=len, default=None)
