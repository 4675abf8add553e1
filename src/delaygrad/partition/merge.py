"""Join stages into one network again, under the names and in the order of the original."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from delaygrad.errors import PartitionError
from delaygrad.partition.graph.stage import GraphStage, join_stages
from delaygrad.partition.layers import is_chain, is_container

__all__ = ["is_marked", "mark_stage", "merge"]

# A plain attribute of each stage, (stage_index, num_stages): it survives deepcopy and pickle, is in
# no state_dict, and lets merge see a wrong order that names alone do not show.
_MARK = "_split_position"


def merge(stages: Sequence[nn.Module]) -> nn.Module:
    """Join stages into one network.

    Of an nn.Sequential's stages, a plain nn.Sequential; of another network's, a module that holds
    all blocks under the model's own names and calls them as the model does, whose state_dict loads
    into the model's class.

    Holds the stages' modules, not copies. A nested nn.Sequential that a cut went through is made
    whole: the last child of one stage and the first child of the next, if both are containers of
    one name, become one. The keys of the state_dict come in the order of the un-split model.

    Args:
        stages: all stages from `split`, in order; also slices of an nn.Sequential.
    Returns:
        model: with the same forward as the stages in a row.
    Raises:
        PartitionError: no stages, one that is not an nn.Sequential, a wrong order, or one name
            twice.
    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> list(merge([net[:1], net[1:]]).state_dict())
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    if not stages:
        raise PartitionError("no stages to merge (stages: 0); pass the stages made by split")
    if all(isinstance(stage, GraphStage) for stage in stages):
        _check_marks(stages)
        return join_stages([stage for stage in stages if isinstance(stage, GraphStage)])
    for stage_index, stage in enumerate(stages):
        if not is_chain(stage):
            raise PartitionError(
                f"stage {stage_index} is not a plain nn.Sequential with layers (type: "
                f"{type(stage).__name__}); pass the stages made by split, without wrappers or hooks"
            )
    if all(map(is_marked, stages)):
        _check_marks(stages)
        return _join(stages, prefix="")
    model = _join(stages, prefix="")
    _check_numbering(model, prefix="")
    return model


def mark_stage(stage: nn.Module, stage_index: int, num_stages: int) -> None:
    """Note on a stage which one it is, for `merge` to check."""
    setattr(stage, _MARK, (stage_index, num_stages))


def is_marked(stage: nn.Module) -> bool:
    """Whether `split` has made the stage."""
    return hasattr(stage, _MARK)


def _join(parts: Sequence[nn.Module], prefix: str) -> nn.Sequential:
    children: OrderedDict[str, list[nn.Module]] = OrderedDict()
    for part in parts:
        for position, (name, child) in enumerate(part._modules.items()):
            if child is None:
                raise PartitionError(f"layer is None (layer: {prefix + name!r}); remove it")
            if name not in children:
                children[name] = [child]
                continue
            cut_open = position == 0 and name == next(reversed(children))
            if not (cut_open and is_container(child) and is_container(children[name][-1])):
                raise PartitionError(
                    f"two stages hold a layer of one name (layer: {prefix + name!r}); pass each "
                    "stage of one model once, in order"
                )
            children[name].append(child)
    joined = nn.Sequential(
        OrderedDict(
            (name, pieces[0] if len(pieces) == 1 else _join(pieces, f"{prefix}{name}."))
            for name, pieces in children.items()
        )
    )
    joined.training = parts[0].training
    return joined


def _check_marks(stages: Sequence[nn.Module]) -> None:
    marks = [getattr(stage, _MARK) for stage in stages]
    if marks != [(k, len(stages)) for k in range(len(stages))]:
        given = ", ".join(f"stage {k} of {num_stages}" for k, num_stages in marks)
        raise PartitionError(
            f"stages out of order, missing or from several splits (given: {given}); pass all "
            "stages of one split in order"
        )


def _check_numbering(container: nn.Module, prefix: str) -> None:
    """Where no marks tell the order, numbers used as names must increase."""
    for name, child in container._modules.items():
        if child is not None and is_container(child):
            _check_numbering(child, f"{prefix}{name}.")
    numbers = [name for name in container._modules if name.isdecimal()]
    for before, after in pairwise(numbers):
        if int(after) < int(before):
            raise PartitionError(
                f"stages out of order (layer {prefix + after!r} comes after {prefix + before!r}); "
                "pass the stages in order"
            )
