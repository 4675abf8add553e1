"""Count what the autograd graph of each layer keeps in memory until the backward pass.

The network runs forward once as a whole, so that two layers that keep the same tensor (a ReLU its
output, the convolution after it its input) are seen to share one block of memory. Parameters and
buffers are there anyway and do not count. What a custom autograd.Function hides on its ``ctx``
without ``save_for_backward`` is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from delaygrad.partition.costs import Storage
from delaygrad.rounding_rule import is_roundable

__all__ = ["GraphMemory"]

_ROUNDED_ITEMSIZE = 2


@dataclass
class GraphMemory:
    """Notes the storages that graphs keep; holds on to the tensors, so that no address is reused.

    Args:
        excluded: tensors that do not count: parameters and buffers.
    """

    excluded: list[Tensor]
    _numbers: dict[object, int] = field(default_factory=dict)
    _kept: list[Tensor] = field(default_factory=list)
    _largest: int = 0

    def __post_init__(self) -> None:
        self._own = {_address(tensor) for tensor in self.excluded}

    def storages(self, tensors: list[Tensor]) -> dict[int, Storage]:
        """Number the storages of tensors."""
        found: dict[int, Storage] = {}
        for tensor in tensors:
            self._note(tensor, found)
        return found

    def watch(self, found: dict[int, Storage]) -> saved_tensors_hooks:
        """Within the block, note into ``found`` what graphs save."""

        def pack(tensor: Tensor) -> Tensor:
            self._note(tensor, found)
            return tensor.detach()  # the tensor itself would be a cycle

        return saved_tensors_hooks(pack, lambda tensor: tensor)

    def _note(self, tensor: Tensor, found: dict[int, Storage]) -> None:
        address = _address(tensor)
        if address in self._own:
            return
        self._largest = max(self._largest, tensor.numel())
        size, small = _sizes(tensor, self._largest)
        if not size:
            return
        self._kept.append(tensor.detach())
        number = self._numbers.setdefault(address, len(self._numbers))
        before = found.get(number)
        found[number] = Storage(size, max(small, before.rounded_bytes if before else 0))


def _sizes(tensor: Tensor, largest: int) -> tuple[int, int]:
    """Bytes of the storage, and of what a stash in a 2-byte type keeps: see ``stash.rounding``."""
    if tensor.layout != torch.strided:
        size = tensor.numel() * tensor.element_size()
        return size, size
    size = tensor.untyped_storage().nbytes()
    narrow = is_roundable(tensor, largest)
    return size, tensor.numel() * _ROUNDED_ITEMSIZE if narrow else size


def _address(tensor: Tensor) -> object:
    if tensor.layout != torch.strided or tensor.is_meta:
        return id(tensor)
    return tensor.device, tensor.untyped_storage().data_ptr() or id(tensor)
