"""Whether a saved state is of a stage like the one that is to continue from it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.errors import CheckpointError


def optimizer_name(optimizer: torch.optim.Optimizer | None) -> str | None:
    """Return the class's name; None where there is no optimizer."""
    return None if optimizer is None else type(optimizer).__name__


def check_state(
    state: dict[str, Any],
    stage_index: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Raise unless a stage's state fits its network and optimizer.

    Raises:
        CheckpointError: it is of another network or another optimizer; names what differs.
    """
    there, here = _kinds(state["model"]), _kinds(module.state_dict())
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if differing and not _accepts(module, state["model"], differing, there, here):
        name = differing[0]
        raise CheckpointError(
            f"the checkpoint is of another network (stage: {stage_index}; {name} there: "
            f"{there.get(name, 'absent')}, here: {here.get(name, 'absent')}; "
            f"{len(differing)} differ in all); split the same network at the same cuts"
        )
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for kept in state["weights"].values():
        if kept.keys() != names:
            raise CheckpointError(
                f"a waiting batch has other parameters than the network (stage: {stage_index}, "
                f"differing: {sorted(kept.keys() ^ names)}); call flush before such a checkpoint"
            )
    if state["optimizer_name"] != optimizer_name(optimizer):
        raise CheckpointError(
            f"the checkpoint is of another optimizer (stage: {stage_index}, "
            f"there: {state['optimizer_name']}, here: {optimizer_name(optimizer)})"
        )
    ours = None if optimizer is None else optimizer.state_dict()
    if _group_sizes(state["optimizer"]) != _group_sizes(ours):
        raise CheckpointError(
            f"the optimizer has other parameter groups (stage: {stage_index}, parameters "
            f"in each there: {_group_sizes(state['optimizer'])}, here: {_group_sizes(ours)})"
        )


def _accepts(
    module: nn.Module,
    state: dict[str, Any],
    differing: list[str],
    there: dict[str, str],
    here: dict[str, str],
) -> bool:
    """Say whether a module loads buffers of other shapes, or that it lacks, by its own means."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name in differing:
        types = {kinds[name].split()[0] for kinds in (there, here) if name in kinds}
        if name in parameters or len(types) > 1:
            return False
    try:
        copy.deepcopy(module).load_state_dict(state)
    except (RuntimeError, TypeError):  # it cannot be copied, or does not load
        return False
    return True


def _kinds(state: dict[str, Any]) -> dict[str, str]:
    # What is not a tensor (a module's extra state) is the module's own business.
    return {
        name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _group_sizes(optimizer: dict[str, Any] | None) -> list[int]:
    return [] if optimizer is None else [len(g["params"]) for g in optimizer["param_groups"]]
