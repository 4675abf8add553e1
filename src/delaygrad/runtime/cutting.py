"""Cut a network alike on all ranks: rank 0 measures and sends the cuts to the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from delaygrad.boundary import Tree
from delaygrad.errors import DelaygradError, PartitionError
from delaygrad.optimizers import MakeOptimizer
from delaygrad.partition import cuts_of, split

__all__ = ["cut_alike"]


def cut_alike(
    model: nn.Module,
    *,
    sample_inputs: Tree,
    cuts: Sequence[str | int] | None,
    blocks: Sequence[str] | None,
    make_optimizer: MakeOptimizer,
    recompute: bool,
    group: dist.ProcessGroup | None,
    num_stages: int | None,
) -> list[nn.Module]:
    """Return this rank's stages, cut where rank 0 has chosen.

    Raises:
        PartitionError: rank 0 could not cut the network; raised on every rank.
    """
    num_ranks, index = dist.get_world_size(group), dist.get_rank(group)
    num_stages = num_ranks if num_stages is None else num_stages
    if num_stages < num_ranks:
        raise PartitionError(
            f"too few stages for the ranks (stages: {num_stages}, ranks: {num_ranks}); give each "
            "rank one at least"
        )

    def at(places: Sequence[str | int]) -> list[nn.Module]:
        return split(model, num_stages, sample_inputs=sample_inputs, cuts=places, blocks=blocks)

    stages: list[nn.Module] = []
    told: dict[str, Any] = {}
    if index == 0:
        try:
            if cuts is None:
                stages = split(
                    model,
                    num_stages,
                    sample_inputs=sample_inputs,
                    blocks=blocks,
                    make_optimizer=make_optimizer,
                    recompute=recompute,
                )
            else:
                stages = at(cuts)
            told = {"cuts": cuts_of(stages)}
        except BaseException as error:
            _broadcast({"error": f"{type(error).__name__}: {error}"}, group)
            raise
    told = _broadcast(told, group)
    if "error" in told:
        raise PartitionError(f"rank 0 could not cut the network: {told['error']}")
    found: list[str] = told["cuts"]
    if index:
        try:
            stages = at(found)
        except DelaygradError as error:
            raise type(error)(
                f"rank {index} cannot cut the network as rank 0 does (cuts: {found}): {error}"
            ) from error
    held = stages_of(index, num_ranks, num_stages)
    return stages[held.start : held.stop]


def stages_of(rank: int, num_ranks: int, num_stages: int) -> range:
    """Return the stages that a rank holds if they are shared out evenly.

    Example:
        >>> [list(stages_of(rank, 2, 5)) for rank in range(2)]
        [[0, 1], [2, 3, 4]]
    """
    return range(num_stages * rank // num_ranks, num_stages * (rank + 1) // num_ranks)


def _broadcast(value: dict[str, Any], group: dist.ProcessGroup | None) -> dict[str, Any]:
    """Return the first rank's value on every rank of the group; JSON, so nothing is unpickled."""
    source = dist.get_global_rank(group, 0) if group is not None else 0
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    length = torch.tensor([len(text)], device=device)
    dist.broadcast(length, src=source, group=group)
    if dist.get_rank(group):
        text = torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(text, src=source, group=group)
    told: dict[str, Any] = json.loads(bytes(text.tolist()))
    return told
