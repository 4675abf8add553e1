"""Parameter versions: what the forward of a waiting batch used, kept apart from the live ones.

The rule (Huo et al., ICML 2018) linearises a batch at the parameters that its forward used. An
optimizer writes into parameters in place, so those of a waiting batch must be kept apart:

    forward of batch s   the graph is built on *aliases* that share the live parameters' memory
    before the update    if a graph waits on that memory, the live parameters move to a copy
    update               the optimizer writes into the copy; the waiting graph never notices

So there is one copy per parameter version, none when no update came in between, and none at all on
a stage whose delay is 0. Versions are told apart by their *edition*, a number that grows with every
update, and with every change by hand that gives a parameter new memory or freezes it.

With *live* parameters (the rule that the authors' code computes) the aliases go on sharing memory:
the backward meets the activations of the forward and the parameters of today. Autograd does not
notice, since an alias counts its own changes only; that is why nothing but this rule may do it. A
copy of all parameters, frozen ones too, is kept all the same, for a checkpoint, from which the
activations are to be computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from delaygrad.errors import StageError, StashError

_Place: TypeAlias = tuple[int, int, bool]
"""Identity of a live parameter, address of its memory, whether it wants a gradient."""

_GONE: Final = nn.Parameter(torch.empty(0), requires_grad=False)


class ParameterSlot(NamedTuple):
    """One place in a module that holds a parameter, and what stands in for it."""

    name: str
    owner: nn.Module
    attribute: str
    live: nn.Parameter
    alias: nn.Parameter


@dataclass(frozen=True)
class ParameterVersion:
    """The parameters of a stage as a forward met them, and which of them were frozen.

    Attributes:
        edition: those of one edition are equal.
        past: of live parameters that have moved on, the values by name; else empty.
    """

    edition: int
    slots: list[ParameterSlot] = field(repr=False)
    past: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, the module computes with this version."""
        outside = []
        for _, owner, attribute, _, alias in self.slots:
            outside.append((owner, attribute, owner._parameters.get(attribute, _GONE)))
            _install(owner, attribute, alias)
        try:
            yield
        finally:
            for owner, attribute, parameter in outside:
                if parameter is _GONE:  # taken out since the forward, by pruning for instance
                    del owner._parameters[attribute]
                else:
                    _install(owner, attribute, parameter)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within the block, live parameters have the values that they had in the forward."""
        present = [slot.alias.data.clone() for slot in self.slots] if self.past else []
        for slot in self.slots[: len(present)]:
            slot.alias.data.copy_(self.past[slot.name])
        try:
            yield
        finally:
            for slot, values in zip(self.slots, present, strict=False):
                slot.alias.data.copy_(values)

    def move_gradients(self) -> None:
        """Add the gradients to those of the live parameters; None adds nothing.

        A parameter that has been frozen since gets none: it must not move any more.
        """
        for _, _, _, live, alias in self.slots:
            gradient, alias.grad = alias.grad, None  # so tied parameters, in two slots, move once
            if not live.requires_grad:
                live.grad = None
            elif live.grad is None:
                live.grad = gradient
            elif gradient is not None:
                live.grad.add_(gradient)

    def parameters(self) -> list[Tensor]:
        """The tensors that stand in for the live parameters."""
        return [slot.alias for slot in self.slots]

    def tensors(self) -> dict[str, Tensor]:
        """Return the values by parameter name, for a checkpoint; frozen ones want no gradient.

        They do not change any more: what is still the memory of a live parameter is copied.
        """
        return {
            slot.name: self._kept(slot).requires_grad_(slot.alias.requires_grad)
            for slot in self.slots
        }

    def _kept(self, slot: ParameterSlot) -> Tensor:
        if slot.name in self.past:
            return self.past[slot.name].detach()
        shared = slot.alias.data_ptr() == slot.live.data_ptr()
        return slot.alias.detach().clone() if shared else slot.alias.detach()


def _install(owner: nn.Module, attribute: str, parameter: nn.Parameter | None) -> None:
    if isinstance(owner, nn.RNNBase):  # keeps a second list of its weights, by setattr
        setattr(owner, attribute, parameter)
    else:
        owner._parameters[attribute] = parameter


class _Shared(NamedTuple):
    """A live parameter whose memory versions use too."""

    live: nn.Parameter
    name: str
    memory: int
    """Its address."""
    writes: int
    """As PyTorch counts them."""


class ParameterStash:
    """Make parameter versions, and keep the live parameters out of their way.

    Args:
        module: the stage's network; its parameters may be frozen, unfrozen or replaced at any
            time between updates.
        live: let versions go on sharing memory through updates.
    """

    def __init__(self, module: nn.Module, *, live: bool = False) -> None:
        self._module = module
        self._live = live
        self._edition = 0
        self._met: list[_Place] | None = None  # what forwards of this edition have met
        self._shared: dict[int, _Shared] = {}  # by the identity of the live parameter
        self._present: list[ParameterVersion] = []  # with live parameters, made since an update

    def edition(self) -> int:
        """Return that of the live parameters; a new one, if somebody has changed them by hand."""
        if self._met is not None and self._met != self._places():
            self._begin(self._edition + 1)
        return self._edition

    def current(self) -> ParameterVersion:
        """Return the live parameters as a version; it shares their memory until an update."""
        self.require_unspoilt()
        current = self._alias(self.edition(), values=None)
        self._met = [_place(slot.live) for slot in current.slots]
        if self._live:
            self._present.append(current)
        else:
            for name, _, _, live, _ in current.slots:
                self._shared[id(live)] = _Shared(live, name, live.data_ptr(), live._version)
        return current

    def restore(self, edition: int, values: dict[str, Tensor]) -> ParameterVersion:
        """Return a version with the values that ``ParameterVersion.tensors`` gave."""
        if not self._live:
            return self._alias(edition, values)
        restored = self._alias(edition, values=None)
        restored.past.update({name: tensor.detach().clone() for name, tensor in values.items()})
        for slot in restored.slots:
            slot.alias.requires_grad_(values[slot.name].requires_grad)
        return restored

    def require_unspoilt(self) -> None:
        """Raise unless the memory that versions share is as their forwards left it.

        Raises:
            StashError: a parameter has been changed in place, by hand.
        """
        for live, name, memory, writes in self._shared.values():
            if live._version != writes and live.data_ptr() == memory and live.numel():
                raise StashError(
                    "changed in place while a batch that was forwarded with it waits for its "
                    f"backward (parameter: {name}); give it new memory instead: "
                    "parameter.data = new_values"
                )

    def before_update(self) -> None:
        """Move the live parameters to a copy if a version shares their memory.

        Frozen ones stay, and cost nothing: no optimizer writes into them. With live parameters
        nothing moves; versions are given a copy of what they were.
        """
        values: dict[int, dict[str, Tensor]] = {}  # by edition
        for version in self._present:
            if version.edition not in values:
                values[version.edition] = {
                    slot.name: slot.alias.detach().clone() for slot in version.slots
                }
            version.past.update(values[version.edition])
        self._present.clear()
        self.require_unspoilt()
        moving = [shared.live for shared in self._shared.values() if shared.live.requires_grad]
        _move(moving)
        for live in moving:
            del self._shared[id(live)]
        self._begin(self._edition + 1)

    def forget(self) -> None:
        """Forget that versions share memory: no graph waits any more."""
        self._shared.clear()
        self._present.clear()

    def reset(self, edition: int) -> None:
        """Forget everything; the live parameters are of this edition."""
        self.forget()
        self._begin(edition)

    def _begin(self, edition: int) -> None:
        self._edition, self._met = edition, None

    def _places(self) -> list[_Place]:
        return [
            _place(live)
            for owner in self._module.modules()
            for live in owner._parameters.values()
            if live is not None
        ]

    def _alias(self, edition: int, values: dict[str, Tensor] | None) -> ParameterVersion:
        aliases: dict[int, nn.Parameter] = {}  # one for each, also where tied
        slots = []
        for prefix, owner in self._module.named_modules():
            for attribute, live in owner._parameters.items():
                name = f"{prefix}.{attribute}" if prefix else attribute
                if live is None:
                    continue
                alias = aliases.get(id(live))
                if alias is None:
                    source = live if values is None else values[name].to(live.device)
                    alias = aliases[id(live)] = _alias_of(live, source, name)
                slots.append(ParameterSlot(name, owner, attribute, live, alias))
        return ParameterVersion(edition, slots)


def _place(live: nn.Parameter) -> _Place:
    return id(live), live.data_ptr(), live.requires_grad


def _alias_of(live: nn.Parameter, source: Tensor, name: str) -> nn.Parameter:
    """Make a parameter over the memory of ``source`` that is to a forward what the live one is."""
    alias = nn.Parameter(source.data, source.requires_grad)
    vars(alias).update(vars(live))  # attributes that somebody has set
    if live._post_accumulate_grad_hooks:
        raise StageError(
            "a hook that runs when a gradient has been accumulated cannot run on a stage with a "
            f"delay (parameter: {name}); do it in a step pre-hook of the stage's optimizer"
        )
    for hook in (live._backward_hooks or {}).values() if alias.requires_grad else ():
        alias.register_hook(hook)  # type: ignore[no-untyped-call]
    return alias


def _move(parameters: Iterable[nn.Parameter]) -> None:
    """Move parameters to copies; those that are one in memory stay so."""
    copies: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    for parameter in parameters:
        memory = (parameter.data_ptr(), parameter.shape, parameter.stride())
        if memory not in copies:
            copies[memory] = parameter.data.clone()
        parameter.data = copies[memory]
