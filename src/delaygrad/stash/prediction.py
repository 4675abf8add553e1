"""Predicted parameters: what a forward meets if the method looks ahead.

    after an update  w_prev = the parameters before it
    forward          built on aliases of  v = w + h (w - w_prev), computed once per update
    batch in flight  keeps the v of its forward; no optimizer writes into it

Frozen parameters are not predicted. Nor is a parameter that was given new memory, or was written in
place, since the last update: it has no ``w_prev``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from delaygrad.errors import StageError
from delaygrad.stash.forward_effects import Met, same_values
from delaygrad.stash.parameters import ParameterStash
from delaygrad.stash.version import ParameterVersion


class _Moved(NamedTuple):
    """A parameter as an update left it."""

    memory: int
    writes: int
    previous: Tensor
    """What it was before the update."""


class PredictedStash(ParameterStash):
    """Make versions of predicted parameters.

    Args:
        module: the stage's network.
        horizon: h, in updates.
    """

    def __init__(self, module: nn.Module, horizon: float) -> None:
        super().__init__(module)
        self._horizon = horizon
        self._moved: dict[str, _Moved] = {}
        self._leaving: dict[str, Tensor] = {}  # during an update: the values before it
        self._predicted: dict[str, Tensor] = {}
        self._predicted_for: list[tuple[str, int, int]] | None = None  # the parameters at that time

    def current(self) -> ParameterVersion:
        """Return the predicted parameters as a version."""
        self._predict()
        return super().current()

    def enter(self) -> ParameterVersion:
        """See ``ParameterStash.enter``."""
        self._predict()
        return super().enter()

    def before_update(self) -> None:
        """Keep the parameters, and give the optimizer a copy to write into."""
        trained = self._trained()
        self._leaving = {name: live.data for name, live in trained.items()}
        for live in trained.values():
            self._shared.pop(id(live), None)
            live.data = live.data.clone()
        super().before_update()

    def after_update(self) -> None:
        """Note which parameters have moved, and their values before."""
        trained = self._trained()
        self._moved = {
            name: _Moved(trained[name].data_ptr(), trained[name]._version, previous)
            for name, previous in self._leaving.items()
            if name in trained
        }
        self._leaving, self._predicted_for = {}, None

    def reset(self, edition: int) -> None:
        """See ``ParameterStash.reset``; afterwards no parameter is predicted."""
        super().reset(edition)
        self._moved, self._predicted_for = {}, None

    def previous(self) -> dict[str, Tensor]:
        """Return ``w_prev`` by name, of the parameters that have one."""
        self._predict()
        return {name: self._moved[name].previous.clone() for name in self._predicted}

    def restore_previous(self, values: dict[str, Tensor]) -> None:
        """Continue from what ``previous`` returned; the parameters are those of the same moment."""
        trained = self._trained()
        self._leaving = {
            name: value.to(trained[name].device, copy=True)
            for name, value in values.items()
            if name in trained
        }
        self.after_update()

    def _alias(self, edition: int, values: dict[str, Tensor] | None) -> ParameterVersion:
        if values is None:
            places = self._walk.places()
            values = {**{name: live for name, _, _, live in places}, **self._predicted}
        return super()._alias(edition, values)

    def _leave_one(self, name: str, live: nn.Parameter, alias: nn.Parameter) -> Met | None:
        if name not in self._predicted:
            return super()._leave_one(name, live, alias)
        old, predicted = self._entered[id(live)].old, self._predicted[name]
        changed = alias.data_ptr() != predicted.data_ptr() or alias._version > 0
        if old is not None:
            live.data = old
            changed = changed or not same_values(alias.data, *self._ahead([name], [old]))
        if changed or not alias.requires_grad:
            raise StageError(
                f"the forward changed a parameter that is predicted (parameter: {name}); train "
                "with a method that meets the live parameters, or change it between iterations"
            )
        return None

    def _share(self, version: ParameterVersion) -> ParameterVersion:
        super()._share(version)
        for slot in version.slots:
            if slot.name in self._predicted:  # in memory of its own
                self._shared.pop(id(slot.live), None)
        return version

    def _predict(self) -> None:
        """Predict anew if a parameter has changed; all forwards until then share the memory."""
        trained = self._trained()
        now = [(name, live.data_ptr(), live._version) for name, live in trained.items()]
        if now == self._predicted_for:
            return
        names = [
            name
            for name, memory, writes in now
            if name in self._moved and self._moved[name][:2] == (memory, writes)
        ]
        ahead = self._ahead(names, [trained[name].data for name in names])
        self._predicted = {
            name: value.requires_grad_() for name, value in zip(names, ahead, strict=True)
        }
        self._predicted_for = now

    def _ahead(self, names: list[str], now: list[Tensor]) -> Sequence[Tensor]:
        if not names:
            return []
        step = torch._foreach_sub(now, [self._moved[name].previous for name in names])
        return torch._foreach_add(now, step, alpha=self._horizon)

    def _trained(self) -> dict[str, nn.Parameter]:
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for name, _, _, live in self._walk.places():
            if live.requires_grad:
                found.setdefault(id(live), (name, live))
        return dict(found.values())
