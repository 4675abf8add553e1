"""What crosses the boundary between two stages: tensors, alone or in containers.

A stage hands on one value. Most networks hand on one tensor; some hand on several. Everything here
works on the flat list of tensors and a *structure*, a JSON value that remembers how to put the list
together again: ``null`` is a tensor, ``{"tuple": [...]}``, ``{"list": [...]}`` and
``{"dict": {...}}`` hold further structures, ``"none"`` is ``None``. Named tuples, dataclasses and
``OrderedDict`` with its subclasses are ``{"class": ["module:name", {...}]}``.

A structure may come from another process. Nothing is imported for it, and no ``__init__`` runs. The
class must be of one of these kinds, and be found under its name in a module that is imported here.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from delaygrad.errors import StageError

Tree: TypeAlias = Any
"""A tensor, ``None``, or a container of trees: tuple, list, dict (string keys), named tuple,
dataclass, ``OrderedDict`` or a subclass."""

Structure: TypeAlias = Any
"""The JSON value that ``flatten`` returns with the tensors."""

_SUPPORTED = (
    "a boundary carries tensors, or tuples, lists, dicts, named tuples and dataclasses of tensors"
)


def flatten(tree: Tree) -> tuple[list[Tensor], Structure]:
    """List the tensors of a tree in order, with the structure that rebuilds it.

    Raises:
        StageError: the tree holds something that is not a tensor.

    Example:
        >>> tensors, structure = flatten({"x": torch.zeros(2), "skip": (torch.ones(1), None)})
        >>> len(tensors), structure
        (2, {'dict': {'x': None, 'skip': {'tuple': [None, 'none']}}})
    """
    if type(tree) is Tensor and tree.layout is torch.strided:  # as usual
        return [tree], None
    tensors: list[Tensor] = []
    return tensors, _flatten_into(tree, tensors)


def _flatten_into(tree: Tree, tensors: list[Tensor]) -> Structure:
    if isinstance(tree, Tensor):
        if tree.layout != torch.strided:
            raise StageError(
                f"cannot hand a sparse tensor to the next stage (layout: {tree.layout}); "
                "call .to_dense() on it at the end of the stage"
            )
        tensors.append(tree)
        return None
    if tree is None:
        return "none"
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [_flatten_into(item, tensors) for item in tree]}
    if type(tree) is dict:
        return {"dict": _flatten_items(tree, tensors)}
    if _is_container(type(tree)):
        return {"class": [_name_of(type(tree)), _flatten_items(_items_of(tree), tensors)]}
    raise StageError(f"cannot hand on a value of type {type(tree).__name__}; {_SUPPORTED}")


def _flatten_items(items: dict[str, Tree], tensors: list[Tensor]) -> dict[str, Structure]:
    if any(not isinstance(key, str) for key in items):
        raise StageError(f"dict keys at a boundary must be strings (keys: {list(items)})")
    return {key: _flatten_into(item, tensors) for key, item in items.items()}


def _is_container(cls: type) -> bool:
    return issubclass(cls, OrderedDict) or _is_named_tuple(cls) or dataclasses.is_dataclass(cls)


def _is_named_tuple(cls: type) -> bool:
    # torch's own results (torch.max) are of another make, and have no _fields.
    return issubclass(cls, tuple) and (hasattr(cls, "_fields") or hasattr(cls, "n_fields"))


def _items_of(tree: Any) -> dict[str, Tree]:
    if isinstance(tree, OrderedDict):
        return tree
    if isinstance(tree, tuple):
        return {str(index): item for index, item in enumerate(tree)}
    items = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    more = sorted(vars(tree).keys() - items.keys()) if hasattr(tree, "__dict__") else []
    if more:
        raise StageError(
            f"a {type(tree).__name__} has attributes that are no fields (attributes: {more}); "
            "only fields are carried to the next stage"
        )
    return items


def _name_of(cls: type) -> str:
    name = f"{cls.__module__}:{cls.__qualname__}"
    if _found(name) is not cls:
        raise StageError(
            f"the class of an output cannot be found by its name (class: {name}); define it at "
            "the top level of a module"
        )
    return name


def _found(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    return found


def _rebuild(name: str, items: dict[str, Tree]) -> Tree:
    cls = _found(name)
    if not isinstance(cls, type) or not _is_container(cls):
        raise StageError(
            f"a neighbour's output is of a class that this process does not have (class: {name}); "
            "import its module in this process too"
        )
    if issubclass(cls, tuple):
        values = tuple(items.values())
        return tuple.__new__(cls, values) if hasattr(cls, "_fields") else cls(values)
    tree = cls.__new__(cls)
    if isinstance(tree, OrderedDict):
        for key, item in items.items():
            OrderedDict.__setitem__(tree, key, item)
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):  # a ModelOutput has all, and holds those not None
            object.__setattr__(tree, field.name, items.get(field.name))
    return tree


def unflatten(structure: Structure, tensors: list[Tensor]) -> Tree:
    """Rebuild the tree that ``flatten`` took apart.

    Example:
        >>> unflatten(*reversed(flatten((torch.tensor(1), None))))
        (tensor(1), None)
    """
    return _unflatten(structure, iter(tensors))


def _unflatten(structure: Structure, remaining: Iterator[Tensor]) -> Tree:
    # No closure: one that calls itself is a cycle, and would keep the tensors until a collection.
    if structure is None:
        return next(remaining)
    if structure == "none":
        return None
    ((kind, items),) = structure.items()
    if kind == "dict":
        return {key: _unflatten(item, remaining) for key, item in items.items()}
    if kind == "class":
        name, inner = items
        return _rebuild(name, {key: _unflatten(item, remaining) for key, item in inner.items()})
    parts = [_unflatten(item, remaining) for item in items]
    return tuple(parts) if kind == "tuple" else parts


def parts_of(tree: Tree, num_parts: int) -> list[tuple[Tree, float]]:
    """Split every tensor of a tree along its first dimension, as evenly as it goes.

    Returns:
        num_parts pairs: a part, and its share of the samples; the shares add up to 1.

    Raises:
        StageError: there are fewer samples than parts, or tensors of different lengths.

    Example:
        >>> [(part.tolist(), share) for part, share in parts_of(torch.arange(3), 2)]
        [([0, 1], 0.6666666666666666), ([2], 0.3333333333333333)]
    """
    if num_parts == 1:
        return [(tree, 1.0)]
    tensors, structure = flatten(tree)
    lengths = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    if len(lengths) != 1 or min(lengths) < num_parts:
        raise StageError(
            "cannot split the batch into micro-batches (samples: "
            f"{sorted(lengths)}, micro-batches: {num_parts}); give batches of at least "
            f"{num_parts} samples, all tensors alike"
        )
    (length,) = lengths
    split = zip(*(tensor.tensor_split(num_parts) for tensor in tensors), strict=True)
    return [(unflatten(structure, list(part)), part[0].shape[0] / length) for part in split]


def dense(tensor: Tensor) -> Tensor:
    """Close the gaps in a tensor's memory, keeping the memory order of its dimensions.

    Every boundary tensor is dense in both runtimes, so that a kernel meets the same strides
    (``channels_last`` included) whether the tensor came through a queue or over a network. Without
    gaps no copy is made; the strides of dimensions of size 1 become the usual ones. A conjugate or
    negation that torch has postponed is carried out, because bytes do not show it.

    Example:
        >>> dense(torch.zeros(4, 6)[:, ::2]).stride(), dense(torch.zeros(6, 4).T).stride()
        ((3, 1), (1, 4))
    """
    tensor = tensor.resolve_conj().resolve_neg()
    if _is_usual(tensor):
        return tensor
    view, order = to_row_major(tensor)
    if not view.is_contiguous():
        # Once more: the memory order of size-1 dimensions depends on whether there are gaps.
        view, order = to_row_major(from_row_major(view.contiguous(), order))
    return from_row_major(view.as_strided(view.shape, _usual_strides(view.shape)), order)


def narrowed(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Round what leaves a stage, if it is float32, to a smaller type; None rounds nothing.

    Raises:
        StageError: the tensor has that type already; ``widened`` would change it to float32.

    Example:
        >>> widened(narrowed(torch.tensor(1.001), torch.bfloat16), torch.bfloat16)
        tensor(1.)
    """
    if dtype is None:
        return tensor
    if tensor.dtype == dtype:
        raise StageError(
            f"the stage hands on {dtype} already; boundary_dtype is for networks that compute in "
            "float32: leave it out"
        )
    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor


def widened(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Bring what ``narrowed`` has rounded back to float32."""
    return tensor.float() if dtype is not None and tensor.dtype == dtype else tensor


def to_row_major(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """Return a view of a dense tensor with its dimensions in memory order, and that order.

    Example:
        >>> image = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
        >>> view, order = to_row_major(image)
        >>> view.is_contiguous(), order, tuple(from_row_major(view, order).shape)
        (True, [0, 2, 3, 1], (2, 3, 4, 5))
    """
    if _is_usual(tensor):  # torch's answer takes longer than the rest of a small message
        return tensor, list(range(tensor.dim()))
    order = list(tensor.dim_order())
    return tensor.permute(order), order


def from_row_major(view: Tensor, order: list[int]) -> Tensor:
    """Undo ``to_row_major``: the same tensor with the same strides."""
    dims = range(len(order))
    return view if order == [*dims] else view.permute([order.index(dim) for dim in dims])


def _is_usual(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.stride() == _usual_strides(tensor.shape)


def _usual_strides(shape: torch.Size) -> tuple[int, ...]:
    """Return the strides of a new tensor."""
    strides = [1] * len(shape)
    for dim in range(len(shape) - 1, 0, -1):
        strides[dim - 1] = strides[dim] * max(shape[dim], 1)
    return tuple(strides)
