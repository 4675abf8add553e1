"""Exchange plain values between ranks as JSON, and tensors as safetensors.

torch's object collectives are not used: they unpickle what arrives, and a pickle can run any code.
All ranks of the group call each function, with a group whose tensors live on the CPU.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor


def all_gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every rank's value on every rank; tuples become lists."""
    own = _bytes_of(json.dumps(value).encode())
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([own.numel()]), group=group)
    padded = own.new_zeros(max(int(size) for size in sizes))
    padded[: own.numel()] = own
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded, group=group)
    texts = (of_rank[: int(size)] for of_rank, size in zip(found, sizes, strict=True))
    return [json.loads(text.numpy().tobytes()) for text in texts]


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every rank's value on the group's first rank, [] elsewhere; tuples become lists."""
    return [json.loads(text) for text in _gather_bytes(json.dumps(value).encode(), group)]


def gather_tensors(
    tensors: dict[str, Tensor], group: dist.ProcessGroup | None = None
) -> list[dict[str, Tensor]]:
    """Return every rank's tensors, on the CPU, on the group's first rank; [] elsewhere."""
    own = save({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()})
    return [load(content) for content in _gather_bytes(own, group)]


def broadcast(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Return the value of the group's first rank on every rank; tuples become lists."""
    first = dist.get_rank(group) == 0
    text = _bytes_of(json.dumps(value).encode()) if first else torch.empty(0, dtype=torch.uint8)
    size = torch.tensor([text.numel()])
    dist.broadcast(size, group=group, group_src=0)
    text = text if first else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(text, group=group, group_src=0)
    return json.loads(text.numpy().tobytes())


def _gather_bytes(content: bytes, group: dist.ProcessGroup | None) -> list[bytes]:
    """Gather bytes of different lengths: the parts of a network differ in size."""
    own = _bytes_of(content)
    if dist.get_rank(group) != 0:
        dist.send(torch.tensor([own.numel()]), group=group, group_dst=0)
        dist.send(own, group=group, group_dst=0)
        return []
    found = [content]
    for rank in range(1, dist.get_world_size(group)):
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, group=group, group_src=rank)
        received = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(received, group=group, group_src=rank)
        found.append(received.numpy().tobytes())
    return found


def _bytes_of(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
