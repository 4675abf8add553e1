"""Continue a flushed checkpoint with other cuts, or another number of stages.

After ``flush`` nothing is in flight, so the state of a pipeline is that of one network, by the
names of the whole model:

    parameters, buffers               by name
    state and options of optimizers   by the parameter's name
    w_prev of look-ahead methods      by name
    states of the method's updates    by name
    random streams, gradient norms    those of the new pipeline: they belong to stages
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.errors import CheckpointError
from delaygrad.runtime.worker import Worker
from delaygrad.stage import Stage

__all__ = ["resplit"]

_OF_STAGES = ("params", "param_names")  # what an optimizer's group holds beside options


def resplit(
    workers: Mapping[int, Worker], state: dict[str, Any], num_stages: int, cuts: list[str] | None
) -> dict[str, Any]:
    """Return the state of a flushed pipeline for these stages; changes nothing.

    Args:
        workers: by stage index, of a pipeline with nothing in flight.
        state: of all stages, as ``Pipeline.state_dict`` returns it.
        num_stages, cuts: of the pipeline.

    Raises:
        CheckpointError: batches are in flight, the method keeps state of a stage, or the stages do
            not hold the same network.
    """
    if state["first_batch"] != state["iteration"]:
        raise CheckpointError(
            "the checkpoint is of another pipeline, and has batches in flight (stages there: "
            f"{state['num_stages']}, here: {num_stages}, cuts there: {state.get('cuts')}, here: "
            f"{cuts}); cut the network as there, with cuts=delaygrad.saved_cuts(folder); to cut it "
            "anew, call flush before save"
        )
    saved = [state["stages"][str(k)] for k in range(state["num_stages"])]
    stages = {str(k): _for_stage(worker, saved) for k, worker in workers.items()}
    return {**state, "num_stages": num_stages, "cuts": cuts, "stages": stages}


def _for_stage(worker: Worker, saved: Sequence[dict[str, Any]]) -> dict[str, Any]:
    stage, own = worker.stage, worker.state_dict()
    if any(of_stage["local"] is not None for of_stage in saved):
        raise CheckpointError("the method trains a network for each stage, which cannot be cut")
    names = _aliases(stage.module)
    model = _joined(of_stage["model"] for of_stage in saved)
    optimizers = {of_stage["optimizer_name"] for of_stage in saved} - {None}
    return {
        **own,
        "model": {name: _found(model, name, names, stage) for name in own["model"]},
        "optimizer": _optimizer(stage, own["optimized"], saved, names),
        "optimizer_name": own["optimizer_name"] and "/".join(sorted(optimizers)),
        "version": max(of_stage["version"] for of_stage in saved),
        "written": sorted({name for of_stage in saved for name in of_stage["written"]}),
        "previous": _of(names, _joined(of_stage["previous"] for of_stage in saved)),
        "updates": [
            {
                key: _of(names, _joined(of_stage.get(key, {}) for of_stage in of_update))
                for key in {key for of_stage in of_update for key in of_stage}
            }
            for of_update in zip(*(of_stage["updates"] for of_stage in saved), strict=True)
        ],
        "signals": _signals(stage, saved[0]["signals"]),
    }


def _optimizer(
    stage: Stage,
    optimized: Sequence[str],
    saved: Sequence[dict[str, Any]],
    names: Mapping[str, list[str]],
) -> dict[str, Any] | None:
    """Give each parameter of the stage its own state, and each group the options of its own."""
    if stage.optimizer is None:
        return None
    states, options = {}, {}
    for of_stage in saved:
        for group in of_stage["optimizer"]["param_groups"] if of_stage["optimizer"] else ():
            for number in group["params"]:
                name = of_stage["optimized"][number]
                states[name] = of_stage["optimizer"]["state"].get(number)
                options[name] = {k: v for k, v in group.items() if k not in _OF_STAGES}
    own = copy.deepcopy(stage.optimizer.state_dict())
    own["state"] = {}
    for group in own["param_groups"]:
        of_group = {number: optimized[number] for number in group["params"]}
        found = [_found(options, name, names, stage) for name in of_group.values()]
        if any(not _same(one, found[0]) for one in found):
            raise CheckpointError(
                "parameters that are in one group of the optimizer had different options (stage: "
                f"{stage.stage_index}, parameters: {', '.join(of_group.values())}); group them as "
                "before"
            )
        group.update(found[0] if found else {})
        for number, name in of_group.items():
            if (state := _found(states, name, names, stage)) is not None:
                own["state"][number] = state
    return own


def _signals(stage: Stage, first: Any) -> Any:
    """Return fresh norms, and the scale of the loss as the first stage had it."""
    return None if stage.signals is None else stage.signals.continued(first)


def _aliases(module: nn.Module) -> dict[str, list[str]]:
    """Return all names of each parameter and buffer, by each of its names."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        by_tensor.setdefault(id(tensor), []).append(name)
    return {name: names for names in by_tensor.values() for name in names}


def _found(
    whole: Mapping[str, Any], name: str, names: Mapping[str, list[str]], stage: Stage
) -> Any:
    for alias in (name, *names.get(name, ())):
        if alias in whole:
            return whole[alias]
    raise CheckpointError(
        f"the checkpoint's stages do not hold what this stage needs (stage: {stage.stage_index}, "
        f"missing: {name}); make the stages of the same model with split, and the optimizer of the "
        "same parameters"
    )


def _of(names: Mapping[str, list[str]], whole: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in whole.items() if name in names}


def _joined(parts: Iterable[Any]) -> dict[str, Any]:
    """Join what stages hold by name."""
    whole: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part, dict):
            raise CheckpointError("the method keeps state of each stage, which cannot be cut")
        for name, value in part.items():
            if name in whole and not _equal(whole[name], value):
                raise CheckpointError(
                    f"two stages of the checkpoint hold different values of one name ({name}), so "
                    "they cannot be joined; make stages with split"
                )
            whole[name] = value
    return whole


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
