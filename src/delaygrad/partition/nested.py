"""What layers pass on: a tensor, or tuples, lists and dicts of tensors, nested at will."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from delaygrad.errors import PartitionError

__all__ = ["Nested", "describe", "map_tensors", "tensors_of"]

Nested: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | dict[Any, Any]


def map_tensors(fn: Callable[[Tensor], Tensor], value: Any, source: str) -> Any:
    """Apply fn to each tensor and keep the structure around them; source is named in errors."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        mapped = copy.copy(value)  # keeps subclasses, such as OrderedDict
        for key, entry in value.items():
            mapped[key] = map_tensors(fn, entry, source)
        return mapped
    if isinstance(value, tuple | list):
        entries = [map_tensors(fn, entry, source) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    raise PartitionError(
        f"{source} is neither a tensor nor a tuple, list or dict of tensors "
        f"(type: {type(value).__name__}); only tensors can cross between stages"
    )


def tensors_of(value: Any, source: str) -> list[Tensor]:
    """List the tensors in a nested value, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(keep, value, source)
    return found


def describe(value: Any) -> str:
    """Write the dtypes and shapes of a nested value for a message.

    Example:
        >>> import torch
        >>> describe((torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64)))
        '(float32 [2, 3], int64 [4])'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {describe(entry)}" for key, entry in value.items()) + "}"
    return "(" + ", ".join(describe(entry) for entry in value) + ")"
