"""Keep the activations that a graph saves in a smaller type until its backward.

Autograd saves tensors in the forward and reads them in the backward. One hook rounds a tensor when
it is saved, another widens it when it is read. A tensor that several operations save is rounded
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from delaygrad.rounding_rule import WIDE, is_roundable

_Saved: TypeAlias = tuple[Tensor, torch.dtype | None, int]


@contextmanager
def saving_rounded(dtype: torch.dtype | None, exact: Iterable[Tensor]) -> Iterator[None]:
    """Within the block, graphs save matrices and larger tensors in a smaller type.

    Sparse tensors are saved as they are.

    Args:
        dtype: floating; None saves everything as it is.
        exact: parameters and buffers. They are kept anyway, so a rounded copy would cost memory.
            They and their views are saved as they are.

    Raises:
        RuntimeError: in the backward, if a tensor that was saved unrounded was changed in place.
    """
    if dtype is None:
        yield
        return
    kept = {t.untyped_storage().data_ptr() for t in exact if t.layout == torch.strided}
    seen: dict[tuple[object, ...], tuple[StorageWeakRef, _Saved]] = {}
    largest = 0

    def pack(tensor: Tensor) -> _Saved:
        nonlocal largest
        if tensor.layout != torch.strided:  # sparse: no one block of memory
            return tensor.detach(), None, tensor._version
        storage = tensor.untyped_storage()
        if tensor.dtype in WIDE and storage.data_ptr() not in kept:
            largest = max(largest, tensor.numel())
        if storage.data_ptr() in kept or not is_roundable(tensor, largest):
            return tensor.detach(), None, tensor._version  # the tensor itself would be a cycle
        place = (storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
        key = (*place, tensor.dtype, tensor._version)
        known = seen.get(key)
        if known is None or known[0].expired():  # type: ignore[no-untyped-call]  # freed since
            here = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            seen[key] = known = here, (tensor.detach().to(dtype), tensor.dtype, 0)
        return known[1]

    # A compiler that traced the hooks would make new graphs for each forward's. As decorators, they
    # would load the compiler together with this file.
    hooks = [torch.compiler.disable(hook) for hook in (pack, _unpack)]  # type: ignore[no-untyped-call]
    with saved_tensors_hooks(*hooks):
        yield
    seen.clear()


def _unpack(saved: _Saved) -> Tensor:
    tensor, original, version = saved
    if original is not None:
        return tensor.to(original)
    if tensor._version != version:  # hooks switch autograd's own check off
        raise RuntimeError(
            "a tensor needed for the backward was modified by an inplace operation "
            f"(shape: {list(tensor.shape)}, version: {tensor._version}, expected: {version})"
        )
    return tensor
