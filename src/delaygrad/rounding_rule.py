"""Which of the tensors that a graph saves may be kept in a smaller type."""

from __future__ import annotations

import torch
from torch import Tensor

WIDE = (torch.float32, torch.float64)
_SMALL = 16  # what has less than 1/16 of the numbers of the largest tensor saved so far stays exact


def is_roundable(tensor: Tensor, largest: int) -> bool:
    """Say whether a saved tensor is rounded, next to the largest so far.

    Statistics of a normalisation or of an attention's softmax stay exact: they are small, and an
    error in them affects a whole row. Expanded tensors stay too: a copy of them is larger.

    Args:
        tensor: strided.
        largest: numbers in the largest tensor saved so far, this one included.

    Example:
        >>> is_roundable(torch.ones(4, 8), largest=32), is_roundable(torch.ones(4, 1), largest=128)
        (True, False)
    """
    return (
        tensor.dtype in WIDE
        and tensor.dim() >= 2
        and tensor.numel() * _SMALL >= largest
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )
