"""The state of a stage as plain containers, and the way back; see ``Stage.state_dict``.

A batch in flight is saved as what its forward met: inputs, parameters, random state, buffers. Its
graph is not saved. Loading runs the forward again.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from delaygrad.stage.local_training import require_alike
from delaygrad.stash import Pending
from delaygrad.state_check import check_state, optimizer_name

if TYPE_CHECKING:
    from delaygrad.stage.stage import Stage


def saved(stage: Stage) -> dict[str, Any]:
    """See ``Stage.state_dict``."""
    edition = stage._parameters.edition()
    model = dict(stage.module.state_dict())
    met = stage._buffers.current() if len(stage._pending) else {}
    buffers = {name: value for name, value in met.items() if name in model}
    stale = {
        batch.weights.edition: batch.weights
        for _, batch in stage._pending
        if batch.weights and batch.weights.edition != edition
    }
    optimizer = None if stage.optimizer is None else stage.optimizer.state_dict()
    return {
        "model": copy.deepcopy(model),
        "optimizer": copy.deepcopy(optimizer),
        "optimizer_name": optimizer_name(stage.optimizer),
        "optimized": _optimized(stage),
        "version": stage.version,
        "edition": edition,
        "accumulated": stage.partial.state_dict(),
        "random": stage._random.state(),
        "pending": [batch.describe(index, buffers) for index, batch in stage._pending],
        "weights": {str(number): kept.tensors() for number, kept in stale.items()},
        "written": sorted(stage._parameters.written),
        "previous": stage._parameters.previous(),
        "updates": stage._chain.state_dict(),
        "local": None if stage._local is None else stage._local.state_dict(),
        "signals": None if stage.signals is None else stage.signals.state_dict(),
    }


def _optimized(stage: Stage) -> list[str]:
    """Name the optimizer's parameters, in its order."""
    names = {id(parameter): name for name, parameter in stage.module.named_parameters()}
    groups = [] if stage.optimizer is None else stage.optimizer.param_groups
    return [names.get(id(p), "") for group in groups for p in group["params"]]


def check(stage: Stage, state: dict[str, Any]) -> None:
    """See ``Stage.check_state_dict``."""
    check_state(state, stage.stage_index, stage.module, stage.optimizer)
    require_alike(state["local"], stage._local, stage.stage_index)


def load(stage: Stage, state: dict[str, Any]) -> None:
    """See ``Stage.load_state_dict``; the state is checked already."""
    stage._pending.clear()
    stage._parameters.reset(state["edition"])
    stage.module.load_state_dict(state["model"])
    if stage.optimizer is not None:
        stage.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    stage.version = state["version"]
    stage.partial.clear()
    stage.partial.load_state_dict(state["accumulated"])
    stage._random.set_state(state["random"])
    stage._parameters.written = set(state["written"])
    stage._parameters.restore_previous(state["previous"])
    stage._chain.load_state_dict(state["updates"])
    if stage._local is not None:
        stage._local.load_state_dict(state["local"])
    if stage.signals is not None:
        stage.signals.load_state_dict(state["signals"])
    for described, weights in stage._parameters.restored(state):
        buffers = stage._buffers.current()
        batch = Pending.from_description(described, weights, buffers, stage.device)
        if not stage.rule.recomputes:
            stage._forward_pass.again(batch)
        stage._pending.put(described["batch"], batch)
