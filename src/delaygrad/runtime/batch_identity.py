"""Check that all ranks train on the same batch.

Rank 0 has the inputs, the last rank the targets. If the ranks shuffle differently, the pairs are
wrong, and the network learns nothing. So each activation carries the identity of its batch on rank
0. A rank that has targets compares it with its own identity of the batch, before its forward:

    batch_id   given by the user to ``step``
    targets    a checksum, where rank 0 is given the targets too

A value that only one of the two ranks has is not compared. Inputs are not compared, because
augmentation may differ.
"""

from __future__ import annotations

import operator
import zlib
from typing import Any, TypeAlias

import torch
from torch import Tensor

from delaygrad.boundary import flatten
from delaygrad.errors import DelaygradError, TransportError

BatchId: TypeAlias = int | str
"""What the user calls a batch."""

Identity: TypeAlias = dict[str, Any]
"""A JSON value: ``batch_id`` and ``targets``, None where unknown."""

_SAMPLED = 8192  # elements of a larger tensor that the checksum reads


def require_batch_id(batch_id: Any) -> BatchId | None:
    """Return a batch's name as a plain value.

    Raises:
        TypeError: it is neither an int nor a str.
    """
    if batch_id is None or isinstance(batch_id, str):
        return batch_id
    try:
        return operator.index(batch_id)
    except TypeError:
        raise TypeError(
            f"batch_id is neither an int nor a str (type: {type(batch_id).__name__})"
        ) from None


def identity_of(batch_id: BatchId | None, targets: Any) -> Identity:
    """Return the identity of a batch on this rank."""
    return {"batch_id": batch_id, "targets": checksum(targets)}


def require_same(sent: Identity | None, here: Identity) -> None:
    """Raise if rank 0 and this rank were given different batches.

    Raises:
        TransportError: names both values.
    """
    for key, ours in here.items():
        theirs = None if sent is None else sent[key]
        if ours is None or theirs is None or ours == theirs:
            continue
        what = "batch_id" if key == "batch_id" else "checksum of the targets"
        raise TransportError(
            f"the ranks were given different batches ({what} on stage 0: {theirs!r}, here: "
            f"{ours!r}); read the same batches in the same order on every rank: seed the shuffling "
            "alike on all (or leave targets out on stage 0 if it has none)"
        )


def checksum(targets: Any) -> int | None:
    """Return a checksum of targets; None if it cannot be computed cheaply.

    Tensors on another device than the CPU are not read, because reading would wait for the device.
    Of a tensor of more than 8192 elements, 8192 elements are read, evenly spaced.

    Example:
        >>> checksum(torch.tensor([1, 2])) == checksum(torch.tensor([1, 2]))
        True
        >>> checksum(torch.tensor([1, 2])) == checksum(torch.tensor([2, 1]))
        False
    """
    try:
        tensors, structure = flatten(targets)
    except DelaygradError:  # something of the user's own
        return None
    if not tensors or not all(_is_readable(tensor) for tensor in tensors):
        return None
    number = zlib.crc32(str(structure).encode())
    for tensor in tensors:
        number = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), number)
        flat = tensor.detach().reshape(-1)
        if flat.numel() > _SAMPLED:
            flat = flat[:: -(-flat.numel() // _SAMPLED)].contiguous()
        number = zlib.crc32(flat.view(torch.uint8).numpy().data, number)
    return number


def _is_readable(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not tensor.is_complex()
