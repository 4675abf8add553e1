"""Keep the activations that a graph saves in a smaller type until its backward.

Autograd saves tensors while the forward runs and asks for them in the backward; two hooks stand in
between. What is saved several times (an output that two operations need) is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

_Saved: TypeAlias = tuple[Tensor, torch.dtype | None]
_WIDE = (torch.float32, torch.float64)


def rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a float32 or float64 tensor in a smaller type; any other as it is.

    Example:
        >>> rounded(torch.ones(2), torch.bfloat16).dtype, rounded(torch.ones(2), None).dtype
        (torch.bfloat16, torch.float32)
    """
    return tensor if dtype is None or tensor.dtype not in _WIDE else tensor.to(dtype)


@contextmanager
def saving_rounded(dtype: torch.dtype | None, exact: Iterable[Tensor]) -> Iterator[None]:
    """Within the block, graphs save matrices and larger tensors in a smaller type.

    What has fewer than two dimensions (the statistics of a normalisation) stays exact: it is small,
    and its rounding would weigh on a whole channel.

    Args:
        dtype: floating; None saves everything as it is.
        exact: tensors that are kept anyway, parameters above all, so that a rounded copy would cost
            memory; they and their views are saved as they are.
    """
    if dtype is None:
        yield
        return
    kept = {tensor.untyped_storage().data_ptr() for tensor in exact}
    seen: dict[tuple[object, ...], tuple[StorageWeakRef, _Saved]] = {}

    def pack(tensor: Tensor) -> _Saved:
        storage = tensor.untyped_storage()
        if tensor.dim() < 2 or tensor.dtype not in _WIDE or storage.data_ptr() in kept:
            return tensor, None
        place = (storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
        key = (*place, tensor.dtype, tensor._version)
        known = seen.get(key)
        if known is None or known[0].expired():  # type: ignore[no-untyped-call]  # freed since
            here = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            seen[key] = known = here, (tensor.to(dtype), tensor.dtype)
        return known[1]

    def unpack(saved: _Saved) -> Tensor:
        tensor, original = saved
        return tensor if original is None else tensor.to(original)

    with saved_tensors_hooks(pack, unpack):
        yield
    seen.clear()
