"""An axis value: a frozen choice that can be compared, printed and written as JSON."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass(frozen=True, repr=False)
class Axis:
    """A choice on one axis of a method; two are the same if ``to_json`` is.

    Subclasses are frozen dataclasses of numbers, strings, dtypes and other axis values.
    """

    def __repr__(self) -> str:
        chosen = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(chosen)})"

    def to_json(self) -> dict[str, Any]:
        """Return the class's name and all fields, in plain values."""
        values = {field.name: plain(getattr(self, field.name)) for field in fields(self)}
        return {"kind": type(self).__name__, **values}


def plain(value: Any) -> Any:
    """Return a field's value as JSON has it.

    Example:
        >>> plain(torch.bfloat16), plain((1, None))
        ('bfloat16', [1, None])
    """
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value.to_json() if hasattr(value, "to_json") else value
