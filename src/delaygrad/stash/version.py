"""A parameter version: the parameters of a stage as the forward of one batch met them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from delaygrad.errors import StageError
from delaygrad.stash.forward_effects import Met

_GONE: Final = nn.Parameter(torch.empty(0), requires_grad=False)


class ParameterSlot(NamedTuple):
    """One place in a module that holds a parameter, and the alias that replaces it."""

    name: str
    owner: nn.Module
    attribute: str
    live: nn.Parameter
    alias: nn.Parameter


@dataclass(frozen=True)
class ParameterVersion:
    """The parameters of a stage as a forward met them, and which of them were frozen.

    Attributes:
        edition: versions of one edition are equal.
        past: the values by name, if the live parameters have moved on; else empty.
        met: parameters that the forward has changed, by name, with their values before it.
        replaced: what the last forward put in the place of a parameter, by the place.
    """

    edition: int
    slots: list[ParameterSlot] = field(repr=False)
    past: dict[str, Tensor] = field(default_factory=dict, repr=False)
    met: dict[str, Met] = field(default_factory=dict, repr=False)
    replaced: list[tuple[ParameterSlot, nn.Parameter | None]] = field(
        default_factory=list, repr=False
    )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, the module computes with this version."""
        outside = []
        self.replaced.clear()
        for slot in self.slots:
            _, owner, attribute, _, alias = slot
            outside.append((slot, owner._parameters.get(attribute, _GONE)))
            install(owner, attribute, alias)
        try:
            yield
        finally:
            for slot, parameter in outside:
                _, owner, attribute, _, alias = slot
                inside = owner._parameters.get(attribute)
                if inside is not alias:
                    self.replaced.append((slot, inside))
                if parameter is _GONE:  # taken out since the forward, by pruning for instance
                    del owner._parameters[attribute]
                else:
                    install(owner, attribute, parameter)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within the block, parameters are what the forward met.

        Live parameters are what they are now again, afterwards.

        Raises:
            StageError: the replay changed another parameter than the forward did.
        """
        present = [slot.alias.data.clone() for slot in self.slots] if self.past else []
        for slot in self.slots[: len(present)]:
            slot.alias.data.copy_(self.past[slot.name])
        for slot in self.slots:
            if slot.name in self.met and not present:
                self.met[slot.name].give(slot.alias)
        others = [] if present else [slot for slot in self.slots if slot.name not in self.met]
        before = [(slot.alias.data_ptr(), slot.alias._version) for slot in others]
        try:
            yield
        finally:
            for slot, values in zip(self.slots, present, strict=False):
                slot.alias.data.copy_(values)
        for slot, place in zip(others, before, strict=True):
            if (slot.alias.data_ptr(), slot.alias._version) != place:
                raise StageError(
                    "a parameter was changed when a forward was computed again, and not when it "
                    f"was computed first ({slot.name}); let the forward decide by its inputs, "
                    "parameters and buffers alone"
                )

    def move_gradients(self) -> None:
        """Add the gradients to those of the live parameters; None adds nothing.

        A parameter that has been frozen since gets none: it must not move any more.
        """
        for _, _, _, live, alias in self.slots:
            move_gradient(live, alias)

    def named(self) -> dict[str, Tensor]:
        """The values that the forward met, by name; not copies."""
        return {slot.name: slot.alias.detach() for slot in self.slots}

    def parameters(self) -> list[Tensor]:
        """The tensors that stand in for the live parameters."""
        return [slot.alias for slot in self.slots]

    def tensors(self) -> dict[str, Tensor]:
        """Return the values by parameter name, for a checkpoint; frozen ones want no gradient.

        They do not change any more: what is still the memory of a live parameter is copied.
        """
        return {
            slot.name: self._kept(slot).requires_grad_(
                self.met[slot.name].requires_grad
                if slot.name in self.met
                else slot.alias.requires_grad
            )
            for slot in self.slots
        }

    def changed(self) -> list[str]:
        """Name the parameters whose values the forward has changed."""
        return [name for name, met in self.met.items() if met.values is not None]

    def _kept(self, slot: ParameterSlot) -> Tensor:
        met = self.met.get(slot.name)
        if met is not None and met.values is not None:
            return met.values.detach()
        if slot.name in self.past:
            return self.past[slot.name].detach()
        shared = slot.alias.data_ptr() == slot.live.data_ptr()
        return slot.alias.detach().clone() if shared else slot.alias.detach()


def move_gradient(live: nn.Parameter, alias: nn.Parameter) -> None:
    """Add the gradient of a stand-in to that of the live parameter."""
    gradient, alias.grad = alias.grad, None  # so tied parameters, in two slots, move once
    if not live.requires_grad:
        live.grad = None
    elif live.grad is None:
        live.grad = gradient
    elif gradient is not None:
        live.grad.add_(gradient)


def install(owner: nn.Module, attribute: str, parameter: nn.Parameter | None) -> None:
    """Put a parameter, or None, in its place in a module."""
    if isinstance(owner, nn.RNNBase):  # keeps a second list of its weights, by setattr
        setattr(owner, attribute, parameter)
    else:
        owner._parameters[attribute] = parameter
