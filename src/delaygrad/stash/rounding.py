"""Keep the activations that a graph saves in a smaller type until its backward.

Autograd saves tensors while the forward runs and asks for them in the backward; two hooks stand in
between. What is saved several times with one shape (an output that two operations need) is rounded
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

_Saved: TypeAlias = tuple[Tensor, torch.dtype | None, int]
_WIDE = (torch.float32, torch.float64)
SMALL = 16
"""What has less than 1/16 of the numbers of the largest tensor saved so far stays exact."""


def is_roundable(tensor: Tensor, largest: int) -> bool:
    """Say whether a saved tensor is rounded, next to the largest so far.

    Statistics are not, those of a normalisation or of an attention's softmax: they are small, and
    their error would weigh on a whole row. Nor are expanded tensors, which a copy would only grow.
    """
    return (
        tensor.dtype in _WIDE
        and tensor.dim() >= 2
        and tensor.numel() * SMALL >= largest
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


@contextmanager
def saving_rounded(dtype: torch.dtype | None, exact: Iterable[Tensor]) -> Iterator[None]:
    """Within the block, graphs save matrices and larger tensors in a smaller type.

    Args:
        dtype: floating; None saves everything as it is.
        exact: tensors that are kept anyway, parameters and buffers, so that a rounded copy would
            cost memory; they and their views are saved as they are.

    Raises:
        RuntimeError: in the backward, where a tensor saved as it is was changed in place since.
    """
    if dtype is None:
        yield
        return
    kept = {tensor.untyped_storage().data_ptr() for tensor in exact}
    seen: dict[tuple[object, ...], tuple[StorageWeakRef, _Saved]] = {}
    largest = 0

    def pack(tensor: Tensor) -> _Saved:
        nonlocal largest
        storage = tensor.untyped_storage()
        if tensor.dtype in _WIDE and storage.data_ptr() not in kept:
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

    with saved_tensors_hooks(pack, _unpack):
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
