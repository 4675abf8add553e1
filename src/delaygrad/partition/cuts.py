"""Name the places between stages: from names or indices to cuts, and from stages back to names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from delaygrad.errors import PartitionError
from delaygrad.partition.graph.stage import GraphStage
from delaygrad.partition.layers import layer_names
from delaygrad.partition.merge import is_marked

__all__ = ["cuts_of", "first_block", "known_cuts", "resolve_cuts"]


def cuts_of(stages: Sequence[nn.Module]) -> list[str]:
    """List the first layers of stages 1 … K-1: recorded, they split the same model identically.

    Args:
        stages: from `split`, in order.
    Returns:
        names: K-1 dotted paths, to be passed to `split` as cuts.
    Raises:
        PartitionError: a stage was not made by `split`.
    Example:
        >>> cuts_of([nn.Sequential(nn.ReLU(), nn.ReLU())[:1], nn.Sequential(nn.ReLU(), nn.Tanh())])
        ['0']
    """
    return [
        stage.block_names[0] if isinstance(stage, GraphStage) else layer_names(stage)[0]
        for stage in stages[1:]
    ]


def first_block(stage: nn.Module) -> str | None:
    """Name the first layer or block of a stage; None if `split` has not made it."""
    return cuts_of([stage, stage])[0] if is_marked(stage) else None


def known_cuts(first_blocks: Sequence[str | None]) -> list[str] | None:
    """Turn the first blocks of all stages into cuts; None if `split` has not made the stages.

    Example:
        >>> known_cuts(["stem", "body", "head"]), known_cuts(["stem", None])
        (['body', 'head'], None)
    """
    found = [name for name in first_blocks if name is not None]
    return found[1:] if len(found) == len(first_blocks) else None


def resolve_cuts(cuts: Sequence[str | int], names: Sequence[str], num_stages: int) -> list[int]:
    """Turn cuts as a user writes them into flat layer indices.

    A name may also be that of a nested nn.Sequential: it stands for the first layer inside.

    Args:
        cuts: first layer of each stage but stage 0, by dotted path or flat index.
        names: of all layers, in order.
        num_stages: len(cuts) + 1.
    Returns:
        indices: strictly increasing, each in 1 … len(names)-1.
    Raises:
        PartitionError: wrong number, unknown name, index out of range, or not in order.
    Example:
        >>> resolve_cuts(["body", 3], names=["stem", "body.0", "body.1", "head"], num_stages=3)
        [1, 3]
    """
    if isinstance(cuts, str):
        raise PartitionError(f"cuts is one string (cuts: {cuts!r}); pass a list of layer names")
    if len(cuts) != num_stages - 1:
        raise PartitionError(
            f"cuts do not fit the stages (cuts: {len(cuts)}, stages: {num_stages}); "
            f"pass {num_stages - 1} cuts, or num_stages={len(cuts) + 1}"
        )
    indices = [_index_of(cut, names) for cut in cuts]
    for stage_index, (before, index) in enumerate(zip([0, *indices], indices, strict=False)):
        if index <= before:
            raise PartitionError(
                f"cuts leave stage {stage_index} without layers (it starts at layer "
                f"{names[before]!r}, the next stage at {names[index]!r}); give the cuts in the "
                "order of the layers, each once, none at the first layer"
            )
    return indices


def _index_of(cut: str | int, names: Sequence[str]) -> int:
    if isinstance(cut, int):
        if not 0 <= cut < len(names):
            raise PartitionError(
                f"cut is no layer index (cut: {cut}, layers: {len(names)}); "
                f"pass 1 to {len(names) - 1}, or layer names"
            )
        return cut
    for index, name in enumerate(names):
        if name == cut or name.startswith(f"{cut}."):
            return index
    known = dict.fromkeys(prefix for name in names for prefix in _prefixes(name))
    closest = difflib.get_close_matches(cut, known, n=3, cutoff=0.4) or list(names[:3])
    raise PartitionError(
        f"unknown layer in cuts (cut: {cut!r}, closest: {', '.join(map(repr, closest))}); "
        "layer_names(model) lists them all"
    )


def _prefixes(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:length]) for length in range(len(words), 0, -1)]
