"""Whether a saved state is of a stage like the one that is to continue from it."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.errors import CheckpointError, DelaygradError
from delaygrad.optimizers import parts_of


def optimizer_name(optimizer: torch.optim.Optimizer | None) -> str | None:
    """Return the class's name; None where there is no optimizer."""
    if optimizer is None:
        return None
    return "+".join(type(part).__name__ for part in parts_of(optimizer))


@contextmanager
def loading(stage_index: int) -> Iterator[None]:
    """Within the block, a state that does not have the form of ours is a CheckpointError."""
    try:
        yield
    except DelaygradError:
        raise
    except (
        ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(
            f"the checkpoint's state does not fit (stage: {stage_index}; {reason}); it is damaged, "
            "or of another version of delaygrad or torch"
        ) from error


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
                f"a batch in flight has other parameters than the network (stage: {stage_index}, "
                f"differing: {sorted(kept.keys() ^ names)}); call flush before such a checkpoint"
            )
    if state["optimizer_name"] != optimizer_name(optimizer):
        raise CheckpointError(
            f"the checkpoint is of another optimizer (stage: {stage_index}, "
            f"there: {state['optimizer_name']}, here: {optimizer_name(optimizer)})"
        )
    if optimizer is not None:
        check_optimizer(state["optimizer"], optimizer, f"stage: {stage_index}")


def check_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer, owner: str) -> None:
    """Raise unless an optimizer would take up all of a saved state.

    ``load_state_dict`` takes any names. A state under other names than its own it ignores: momentum
    would begin anew.

    Raises:
        CheckpointError: groups, options or state differ; names what differs.
    """
    there, here = _group_sizes(state), _group_sizes(optimizer.state_dict())
    if there != here:
        raise CheckpointError(
            f"the optimizer has other parameter groups ({owner}, parameters "
            f"in each there: {there}, here: {here})"
        )
    groups = [(part, group) for part in parts_of(optimizer) for group in part.param_groups]
    for (part, _), group in zip(groups, state["param_groups"], strict=True):
        if missing := [name for name in part.defaults if name not in group]:
            raise CheckpointError(
                f"the checkpoint lacks options of the optimizer ({owner}, missing: "
                f"{missing}); continue with the version of torch that wrote it"
            )
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if unknown := sorted(map(str, state["state"].keys() - set(numbers))):
        raise CheckpointError(
            f"the optimizer's state is of parameters that it does not have ({owner}, "
            f"numbers: {unknown})"
        )
    ours = [(part, group, own) for part, group in groups for own in group["params"]]
    for number, (part, group, parameter) in zip(numbers, ours, strict=True):
        saved = state["state"].get(number)
        if saved is None:
            continue
        for name, kind in _first_state(part, group, parameter).items():
            found = _kind(saved.get(name))
            if found != kind:
                raise CheckpointError(
                    f"the optimizer's state has another form ({owner}, parameter "
                    f"{number}, {name} there: {found or 'absent'}, here: {kind}); continue with "
                    "the version of torch that wrote it"
                )


def _first_state(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
) -> dict[str, str]:
    """Return the shapes of the state that a parameter gets at its first step.

    Nothing where that cannot be tried out: the optimizer needs more than a gradient.
    """
    twin = nn.Parameter(torch.zeros_like(parameter))
    twin.grad = torch.zeros_like(parameter)
    probe = object.__new__(type(optimizer))
    try:
        with torch.random.fork_rng(devices=[]):
            probe.__setstate__({  # what a copy is made of
                "defaults": dict(optimizer.defaults),
                "state": defaultdict(dict),
                "param_groups": [{**group, "params": [twin]}],
            })  # fmt: skip
            probe.step()
        return {name: kind for name, value in probe.state[twin].items() if (kind := _kind(value))}
    except Exception:
        return {}


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    finite = isinstance(value, int | float) and math.isfinite(value)
    return "number" if finite else ""


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


def _group_sizes(optimizer: dict[str, Any]) -> list[int]:
    return [len(group["params"]) for group in optimizer["param_groups"]]
