"""What a forward does to the parameters that it is given: found, carried over, kept for a replay.

A module may write into its parameters while it computes: a momentum encoder follows the trained
encoder, a constraint clips a weight. On a stage with a delay the forward gets aliases of the live
parameters, and earlier batches wait on the same memory. So around a forward that writes:

    before   the live parameters move to a copy (the alias with them); the old memory is kept
    after    contents differ: the live parameters stay in the copy, the old memory is what was met
             contents are equal: the live parameters go back to the old memory

Comparing costs a copy. So only parameters that a forward is known to write are compared, and all
parameters in some forwards (``is_checked``). Other memory, other flags, other attributes, and
writes that PyTorch counts are found in every forward, at no cost.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from delaygrad.errors import StageError

_FIRST_CHECKS = 3


def is_checked(forward_index: int) -> bool:
    """Say whether all contents are compared around a forward: the first three, 4, 8, 16, ...

    Example:
        >>> [n for n in range(40) if is_checked(n)]
        [0, 1, 2, 4, 8, 16, 32]
    """
    return forward_index < _FIRST_CHECKS or forward_index & (forward_index - 1) == 0


def expects_writes(forward_index: int) -> bool:
    """Say whether all forwards before this one have been checked."""
    return forward_index < _FIRST_CHECKS


class Met(NamedTuple):
    """A parameter that a forward has changed, as it was before the forward."""

    values: Tensor | None
    """None: they have not changed."""
    requires_grad: bool
    attributes: dict[str, Any]
    """Attributes that the user has set on the parameter."""

    def give(self, alias: nn.Parameter) -> None:
        """Give an alias the values that the forward met, in memory of its own."""
        if self.values is not None:
            alias.data = self.values.detach().clone()
        alias.requires_grad_(self.requires_grad)
        vars(alias).clear()
        vars(alias).update(self.attributes)


class Entered(NamedTuple):
    """A live parameter when a forward begins."""

    memory: int
    """Its address, which is also the alias's."""
    writes: int
    """As PyTorch counts them."""
    old: Tensor | None
    """A copy of its contents; None if contents are not compared."""
    expected: bool
    """Whether a write in place is allowed: no earlier write can have been missed."""


def effect(name: str, live: nn.Parameter, alias: nn.Parameter, before: Entered) -> Met | None:
    """Return what a forward has changed of a parameter; None if nothing.

    Raises:
        StageError: the forward wrote in a way that cannot be carried over.
    """
    if live.data_ptr() != before.memory or live._version != before.writes:
        raise StageError(
            "the forward changed a parameter by another reference than its module's (parameter: "
            f"{name}); keep no list of parameters: read them from their modules in each forward"
        )
    moved = alias.data_ptr() != before.memory
    old = live.data if before.old is None else before.old
    written = alias._version > 0 or (before.old is not None and not same_values(alias.data, old))
    if written and not moved and not before.expected:
        raise StageError(
            f"the forward wrote into a parameter in place (parameter: {name}), after "
            f"{_FIRST_CHECKS} forwards in which it did not; batches that wait need the old "
            "values: give it new memory instead: parameter.data = new_values"
        )
    changed = moved or written or alias.requires_grad != live.requires_grad
    if not changed and _same_attributes(vars(alias), vars(live)):
        return None
    return Met(old if changed else None, live.requires_grad, dict(vars(live)))


def carry(met: Met, live: nn.Parameter, alias: nn.Parameter) -> None:
    """Apply to a live parameter what a forward has done to its alias."""
    if met.values is not None and live.data_ptr() != alias.data_ptr():
        live.data = alias.data
    live.requires_grad_(alias.requires_grad)
    if not _same_attributes(vars(alias), vars(live)):
        vars(live).clear()
        vars(live).update(vars(alias))


def same_values(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are alike; NaN equals NaN, and what is not strided equals nothing.

    A diverged run must report its divergence, not a changed parameter.
    """
    if one.layout != torch.strided or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(
        ((one == other) | ((one != one) & (other != other))).all()
    )


def _same_attributes(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if not one and not other:  # as usual
        return True
    return len(one) == len(other) and all(other.get(key, one) is one[key] for key in one)
