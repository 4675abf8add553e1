"""Find tensors that several layers share: a cut between such layers would give them two delays."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from delaygrad.errors import PartitionError
from delaygrad.partition.layers import Layer

__all__ = ["Tie", "check_cuts", "find_ties", "unbreakable_groups"]

_CONSTANT = "non-persistent buffer"
_FOR_CONSTANTS = (
    "; if it is a constant, register it with persistent=False wherever it is held, and it may be "
    "shared"
)


@dataclass(frozen=True)
class Tie:
    """One parameter or buffer held by two layers, under the first and the last of its names.

    ``kind`` is that of the first: "parameter", "buffer" or "non-persistent buffer".
    """

    kind: str
    first_layer: int
    last_layer: int
    first_name: str
    last_name: str


def find_ties(layers: Sequence[Layer]) -> list[Tie]:
    """List the parameters and buffers that more than one layer holds.

    The same tensor object counts, and so does another one over the same memory. What is a buffer
    with ``persistent=False`` wherever it is held does not: it is no part of the state, a constant
    by custom (a table of positions, a mask), which any number of stages may read.

    Args:
        layers: all layers of the model, in order.
    Returns:
        ties: in the order of their first layers; empty in most networks.
    Example:
        >>> shared = nn.Linear(2, 2)
        >>> [tie.last_name for tie in find_ties([Layer("0", shared), Layer("2", shared)])]
        ['2.weight', '2.bias']
    """
    holders: dict[Hashable, list[tuple[str, int, str]]] = {}
    for index, layer in enumerate(layers):
        for kind, name, tensor in _tensors_in(layer.module):
            full_name = f"{layer.name}.{name}" if layer.name else name
            holders.setdefault(_identity(tensor), []).append((kind, index, full_name))
    ties = []
    for held in holders.values():
        (kind, first, first_name), (_, last, last_name) = held[0], held[-1]
        if first != last and any(kind != _CONSTANT for kind, _, _ in held):
            ties.append(Tie(kind, first, last, first_name, last_name))
    return ties


def unbreakable_groups(num_layers: int, ties: Sequence[Tie]) -> list[int]:
    """List where a cut may fall: the first layer of each group that no tie spans.

    Args:
        num_layers: ≥ 1.
        ties: from `find_ties`.
    Returns:
        starts: increasing, the first is 0.
    Example:
        >>> unbreakable_groups(5, [Tie("parameter", 1, 3, "1.weight", "3.weight")])
        [0, 1, 4]
    """
    spanned = {i for tie in ties for i in range(tie.first_layer + 1, tie.last_layer + 1)}
    return [i for i in range(num_layers) if i not in spanned]


def check_cuts(cuts: Sequence[int], ties: Sequence[Tie]) -> None:
    """Refuse cuts that would give one tensor to two stages.

    Args:
        cuts: flat index of the first layer of each stage but stage 0.
        ties: from `find_ties`.
    Raises:
        PartitionError: a tie crosses a cut.
    Example:
        >>> check_cuts([1], [Tie("parameter", 1, 3, "1.weight", "3.weight")])
    """
    for tie in ties:
        first_stage = sum(cut <= tie.first_layer for cut in cuts)
        last_stage = sum(cut <= tie.last_layer for cut in cuts)
        if first_stage != last_stage:
            remedy = "" if tie.kind == "parameter" else _FOR_CONSTANTS
            raise PartitionError(
                f"{tie.kind} shared between stages ({tie.first_name!r} in stage {first_stage}, "
                f"{tie.last_name!r} in stage {last_stage}), which would change it with two delays; "
                "untie them (give each layer its own tensor), or choose cuts that keep them in one "
                f"stage{remedy}"
            )


def _tensors_in(module: nn.Module) -> list[tuple[str, str, Tensor]]:
    found: list[tuple[str, str, Tensor]] = [
        ("parameter", *entry) for entry in module.named_parameters(remove_duplicate=False)
    ]
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, buffer in owner.named_buffers(recurse=False, remove_duplicate=False):
            kind = _CONSTANT if name in owner._non_persistent_buffers_set else "buffer"
            found.append((kind, f"{prefix}.{name}" if prefix else name, buffer))
    return found


def _identity(tensor: Tensor) -> Hashable:
    # Without one block of memory (meta, lazy, sparse, empty) only the objects can be compared.
    has_address = tensor.layout == torch.strided and not (is_lazy(tensor) or tensor.is_meta)
    address = tensor.data_ptr() if has_address else 0
    return (tensor.device, address) if address else id(tensor)
