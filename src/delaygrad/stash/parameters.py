"""Parameter versions: the parameters that the forward of a batch in flight used.

The rule (Huo et al., ICML 2018) linearises a batch at the parameters that its forward used. An
optimizer writes into parameters in place, so the parameters of a batch in flight must be kept:

    forward of batch s   the graph is built on *aliases* that share the live parameters' memory
    before the update    if a graph waits on that memory, the live parameters move to a copy
    update               the optimizer writes into the copy; the stashed graph is not affected

So there is one copy per parameter version, and no copy on a stage whose delay is 0. Each version
has an *edition*, a number that grows with every update, and with every change by hand that gives a
parameter new memory or freezes it.

With *live* parameters (the rule that the authors' code computes) the aliases go on sharing memory:
the backward meets the activations of the forward and the current parameters. Autograd does not
notice, because an alias counts only its own changes. No other rule may do this. A copy of all
parameters, frozen ones included, is kept for checkpoints, from which the activations are computed
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from delaygrad.errors import StageError, StashError
from delaygrad.stash.forward_effects import Entered, Met, carry, effect, expects_writes, is_checked
from delaygrad.stash.version import ParameterSlot, ParameterVersion, install
from delaygrad.stash.walk import Walk

_Place: TypeAlias = tuple[int, int, bool]
"""Identity of a live parameter, address of its memory, whether it wants a gradient."""


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
        self._module, self._walk = module, Walk(module)
        self._live = live
        self._edition = 0
        self._met: list[_Place] | None = None  # what forwards of this edition have met
        self._shared: dict[int, _Shared] = {}  # by the identity of the live parameter
        self._present: list[ParameterVersion] = []  # with live parameters, made since an update
        self._entered: dict[int, Entered] = {}  # by the identity of the live parameter
        self._forwards = 0  # since the last reset
        self.written: set[str] = set()
        """Parameters that forwards are known to write, by name."""

    def edition(self) -> int:
        """Return the edition of the live parameters; a new one, if they were changed by hand."""
        if self._met is not None and self._met != self._places():
            self._begin(self._edition + 1)
        return self._edition

    def current(self) -> ParameterVersion:
        """Return the live parameters as a version; it shares their memory until an update."""
        self.require_unspoilt()
        return self._share(self._alias(self.edition(), values=None))

    def enter(self) -> ParameterVersion:
        """Return ``current`` for a forward that may write into it; call ``leave`` after it."""
        self.require_unspoilt()
        edition = self.edition()
        old, early = self._guard(), expects_writes(self._forwards)
        version = self._alias(edition, values=None)
        self._forwards += 1
        for name, _, _, live, _ in version.slots:
            known = early or name in self.written
            self._entered[id(live)] = Entered(
                live.data_ptr(), live._version, old.get(id(live)), known
            )
        return version

    def leave(self, version: ParameterVersion) -> None:
        """Apply to the live parameters what a forward has done to the version of ``enter``.

        Raises:
            StageError: the forward wrote in a way that cannot be carried over.
        """
        seen: dict[int, Met | None] = {}
        for name, _, _, live, alias in version.slots:
            if id(live) not in seen:
                seen[id(live)] = self._leave_one(name, live, alias)
            met = seen[id(live)]
            if met is not None:
                version.met[name] = met
        self._put_in_place(version)
        self._entered.clear()
        changed = version.changed()
        self.written.update(changed)
        values = version.tensors() if self._present and changed else {}
        for earlier in self._present:
            for name in changed:
                earlier.past.setdefault(name, values[name])
        self._share(version)
        if changed:
            self._begin(self._edition + 1)

    def restore(
        self, edition: int, values: dict[str, Tensor], changed: Iterable[str] = ()
    ) -> ParameterVersion:
        """Return a version with the values that ``ParameterVersion.tensors`` gave.

        Args:
            edition: of the version.
            values: by parameter name.
            changed: what ``ParameterVersion.changed`` gave.
        """
        if not self._live:
            version = self._alias(edition, values)
            for name, _, _, _, alias in version.slots:
                if name in changed:
                    version.met[name] = Met(alias.data, alias.requires_grad, dict(vars(alias)))
            return version
        restored = self._alias(edition, values=None)
        restored.past.update({name: tensor.detach().clone() for name, tensor in values.items()})
        for slot in restored.slots:
            slot.alias.requires_grad_(values[slot.name].requires_grad)
        return restored

    def restored(
        self, state: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], ParameterVersion | None]]:
        """Yield the batches in flight of a stage's state, as described, with their parameters."""
        kept: dict[tuple[int, int], ParameterVersion] = {}
        for entry in state["pending"]:
            edition, changed = entry["edition"], entry.get("changed", ())
            if edition is None:
                yield entry, None
                continue
            key = edition, entry["batch"] if changed else -1  # apart where the forward writes
            if edition != state["edition"] and key not in kept:
                kept[key] = self.restore(edition, state["weights"][str(edition)], changed)
            yield entry, kept.get(key) or self.current()

    def require_unspoilt(self) -> None:
        """Raise if memory that versions share was changed since their forwards.

        Raises:
            StashError: a parameter was changed in place, by hand.
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

        Frozen parameters stay, without a copy: no optimizer writes into them. With live parameters
        nothing moves; versions get a copy of the old values.
        """
        values: dict[int, dict[str, Tensor]] = {}  # by edition
        for version in self._present:
            if version.edition not in values:
                values[version.edition] = {
                    slot.name: slot.alias.detach().clone() for slot in version.slots
                }
            for name, value in values[version.edition].items():
                version.past.setdefault(name, value)
        self._present.clear()
        self.require_unspoilt()
        moving = [shared.live for shared in self._shared.values() if shared.live.requires_grad]
        _move(moving)
        for live in moving:
            del self._shared[id(live)]
        self._begin(self._edition + 1)

    def after_update(self) -> None:
        """Note what the optimizer has done; nothing to do here."""

    def previous(self) -> dict[str, Tensor]:
        """Return, for a checkpoint, what predictions start from; nothing here."""
        return {}

    def restore_previous(self, values: dict[str, Tensor]) -> None:
        """Continue from what ``previous`` returned."""

    def forget(self) -> None:
        """Forget that versions share memory: no graph waits any more."""
        self._shared.clear()
        self._present.clear()

    def reset(self, edition: int) -> None:
        """Forget everything; set the edition of the live parameters."""
        self.forget()
        self._forwards = 0
        self._begin(edition)

    def _guard(self) -> dict[int, Tensor]:
        """Keep contents that the next forward may change, by the identity of the parameter."""
        everything = is_checked(self._forwards)
        if not everything and not self.written:
            return {}
        guarded = [
            live
            for name, live in self._module.named_parameters()
            if everything or name in self.written
        ]
        if self._live:
            return {id(live): live.data.clone() for live in guarded}
        old = {id(live): live.data for live in guarded}
        _move(guarded)
        return old

    def _leave_one(self, name: str, live: nn.Parameter, alias: nn.Parameter) -> Met | None:
        before = self._entered[id(live)]
        met = effect(name, live, alias, before)
        if met is None:
            if before.old is not None and not self._live:
                live.data = alias.data = before.old
            return None
        if self._live and alias.data_ptr() != before.memory:
            raise StageError(
                "the forward gave a parameter new memory, which backward passes with "
                f'weights="live" do not see (parameter: {name}); write in place: '
                "parameter.data.copy_(new_values)"
            )
        carry(met, live, alias)
        return met

    def _put_in_place(self, version: ParameterVersion) -> None:
        """Keep in the module the parameter by which a forward has replaced a frozen one."""
        for slot, parameter in version.replaced:
            if slot.live.requires_grad or (parameter is not None and parameter.requires_grad):
                raise StageError(
                    "the forward put another object in the place of a parameter that is trained "
                    f"(parameter: {slot.name}), which no optimizer would move; change its values: "
                    "parameter.data = new_values"
                )
            install(slot.owner, slot.attribute, parameter)

    def _share(self, version: ParameterVersion) -> ParameterVersion:
        """Note that a version shares the live parameters' memory."""
        self._met = []
        for name, _, _, live, _ in version.slots:
            place = _, memory, _ = _place(live)
            self._met.append(place)
            if not self._live:
                self._shared[id(live)] = _Shared(live, name, memory, live._version)
        if self._live:
            self._present.append(version)
        return version

    def _begin(self, edition: int) -> None:
        self._edition, self._met = edition, None

    def _places(self) -> list[_Place]:
        return [_place(live) for *_, live in self._walk.places()]

    def _alias(self, edition: int, values: dict[str, Tensor] | None) -> ParameterVersion:
        aliases: dict[int, nn.Parameter] = {}  # one for each, also where tied
        slots = []
        for name, owner, attribute, live in self._walk.places():
            alias = aliases.get(id(live))
            if alias is None:
                source = live if values is None else values[name].to(live.device)
                alias = aliases[id(live)] = _alias_of(live, source, name)
            slots.append(ParameterSlot(name, owner, attribute, live, alias))
        return ParameterVersion(edition, slots)


def _place(live: nn.Parameter) -> _Place:
    return id(live), live.data_ptr(), live.requires_grad


def _alias_of(live: nn.Parameter, source: Tensor, name: str) -> nn.Parameter:
    """Make an alias of a live parameter over the memory of ``source``."""
    alias = nn.Parameter(source.data, source.requires_grad)
    vars(alias).update(vars(live))  # attributes that the user has set
    if live._post_accumulate_grad_hooks:
        raise StageError(
            "a hook that runs when a gradient has been accumulated cannot run on a stage with a "
            f"delay (parameter: {name}); do it in a step pre-hook of the stage's optimizer"
        )
    for hook in (live._backward_hooks or {}).values() if alias.requires_grad else ():
        alias.register_hook(hook)  # type: ignore[no-untyped-call]
    return alias


def _move(parameters: Iterable[nn.Parameter]) -> None:
    """Move parameters to copies; parameters that share memory still share it."""
    copies: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}
    for parameter in parameters:
        memory = (parameter.data_ptr(), parameter.shape, parameter.stride())
        if memory not in copies:
            copies[memory] = parameter.data.clone()
        parameter.data = copies[memory]
