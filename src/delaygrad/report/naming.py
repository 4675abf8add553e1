"""Short names for settings: as much of them as it takes to tell one from another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any]

_TOLD_BY_VALUE = ("data", "model", "optimizer", "runtime", "lr_schedule")
_TOLD_FIRST = (
    *_TOLD_BY_VALUE[:3], "weights", "label_conditioned", "slack", "micro_batches", "recompute",
    "stash_dtype", "boundary_dtype", "lr", "batch_size", "epochs", "lr_schedule",
)  # fmt: skip


def method_name(method: str, num_stages: int, *, live: bool = False) -> str:
    """Name a method as the literature does, with its number of stages.

    Example:
        >>> method_name("ddg", 4), method_name("ddg", 4, live=True), method_name("bp", 1)
        ('DDG K=4', 'DDG live K=4', 'BP')
    """
    name = f"{method.upper()} live" if live else method.upper()
    return name if (method, num_stages) == ("bp", 1) else f"{name} K={num_stages}"


def identity(settings: Settings) -> str:
    """Return a text that is the same for equal settings only."""
    return json.dumps(settings, sort_keys=True)


def tell_apart(settings: Sequence[Settings], names: Sequence[str] = ()) -> dict[str, str]:
    """Give different settings different names.

    Args:
        settings: some of them may be equal.
        names: that they have already, and that are not different enough; by default none.

    Returns:
        The name by ``identity``, in the order of ``settings``.

    Example:
        >>> found = tell_apart([{"lr": 0.1, "epochs": 9}, {"lr": 0.2, "epochs": 9}])
        >>> list(found.values())
        ['lr 0.1', 'lr 0.2']
    """
    given = names or [""] * len(settings)
    start = {identity(one): (one, name) for one, name in zip(settings, given, strict=True)}
    different = [one for one, _ in start.values()]
    found = [name for _, name in start.values()]
    keys = dict.fromkeys([*_TOLD_FIRST, *sorted({key for one in different for key in one})])
    for key in keys:
        if len(set(found)) == len(found):
            break
        told = [_told(key, one) for one in different]
        values: dict[str, set[str]] = {}
        for name, value in zip(found, told, strict=True):
            values.setdefault(name, set()).add(value)
        found = [
            ", ".join(filter(None, (name, value))) if len(values[name]) > 1 else name
            for name, value in zip(found, told, strict=True)
        ]
    return dict(zip(start, found, strict=True))


def _told(key: str, settings: Settings) -> str:
    value = settings.get(key, "not recorded")
    if isinstance(value, list):
        value = " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        value = f"{value:g}"
    return str(value) if key in _TOLD_BY_VALUE else f"{key} {value}"
