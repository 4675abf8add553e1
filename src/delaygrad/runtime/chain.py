"""The workers of one process: its stages, joined by queues, with a link at each end.

link -> | stage 2 -> queue -> stage 3 | -> link      activations
link <- | stage 2 <- queue <- stage 3 | <- link      error gradients
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from delaygrad.errors import StageError
from delaygrad.methods import Method
from delaygrad.optimizers import MakeOptimizer
from delaygrad.partition.layers import Layer
from delaygrad.partition.sharing import check_cuts, find_ties
from delaygrad.runtime.ownership import require_free
from delaygrad.runtime.tie_links import TieLinks
from delaygrad.runtime.ties import require_exact_ties
from delaygrad.runtime.worker import Worker
from delaygrad.schedule import Action, Kind, Schedule
from delaygrad.stage import Stage
from delaygrad.transport import Queue, Receiver, Sender

__all__ = ["chain", "listed", "outward_first", "require_apart"]


def listed(stages: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    """Return the stages of this process, or its only one, as a list.

    Raises:
        StageError: there is none, or another pipeline trains one.
    """
    found = [stages] if isinstance(stages, nn.Module) else list(stages)
    if not found:
        raise StageError("a pipeline needs at least one stage (stages: 0)")
    require_free(found)
    return found


def chain(
    modules: Sequence[nn.Module],
    make_optimizer: MakeOptimizer,
    *,
    first: int = 0,
    activations: tuple[Receiver | None, Sender | None] = (None, None),
    gradients: tuple[Receiver | None, Sender | None] = (None, None),
    rank: int | None = None,
    ties: Mapping[int, TieLinks],
    **options: Any,
) -> list[Worker]:
    """Make a worker for each of these stages, which follow each other.

    Args:
        modules: of the stages, from the input.
        make_optimizer: of each stage.
        first: index of the first of them.
        activations: from the stage below the first, to the stage above the last.
        gradients: from the stage above the last, to the stage below the first.
        rank: see ``Worker``.
        ties: the links of shared parameters, by stage.
        options: further arguments of ``Stage``.
    """
    down, up = ([Queue() for _ in modules[1:]] for _ in range(2))
    inputs: list[Receiver | None] = [activations[0], *down]
    outputs: list[Sender | None] = [*down, activations[1]]
    grad_outputs: list[Receiver | None] = [*up, gradients[0]]
    grad_inputs: list[Sender | None] = [gradients[1], *up]
    return [
        Worker(
            Stage(module, make_optimizer, stage_index=first + place, **options),
            activations=(inputs[place], outputs[place]),
            gradients=(grad_outputs[place], grad_inputs[place]),
            rank=rank,
            ties=ties.get(first + place),
        )
        for place, module in enumerate(modules)
    ]


def require_apart(modules: Sequence[nn.Module], method: Method, first: int = 0) -> None:
    """Raise unless the stages of this process share nothing, or what the method keeps exact.

    Raises:
        StageError: the method cannot train a parameter that `split` has tied; or a stage is fully
            sharded.
        PartitionError: two stages share other parameters or buffers.
    """
    for stage_index, module in enumerate(modules, first):
        _require_unsharded(module, stage_index)
        require_exact_ties(module, method)
    below = [nn.Identity() for _ in range(first)]
    layers = [Layer("", module) for module in (*below, *modules)]
    check_cuts(range(1, len(layers)), find_ties(layers))


def _require_unsharded(module: nn.Module, stage_index: int) -> None:
    sharded = [n for n, p in module.named_parameters() if type(p.data).__name__ == "DTensor"]
    wrapped = any(type(m).__name__ == "FullyShardedDataParallel" for m in module.modules())
    if sharded or wrapped:
        raise StageError(
            f"a stage cannot be fully sharded (stage: {stage_index}, parameter: "
            f"{', '.join(sharded[:1]) or 'in FullyShardedDataParallel'}); leave out fully_shard, "
            "and make more stages where memory is short; mesh= averages replicas"
        )


def outward_first(actions: Iterable[Action], schedule: Schedule, num_stages: int) -> list[Action]:
    """Order the actions of each tick so that other ranks wait for as little as possible.

    A rank with several stages sends an activation from its last stage and an error gradient from
    its first. The first stage goes backward before the others if its error gradient comes from an
    earlier tick, and the last one forward before the others if its activation does. Updates come
    last, so that the replicas' average of one stage travels during the backward of the next:

        stages 2 and 3    2F7 3F7 3B7 3U7 2B6 2U6    in the schedule's order
                          2F7 3F7 2B6 3B7 2U6 3U7    stage 1 has its error gradient earlier
    """
    stages = range(num_stages)
    starts = [schedule.offset(k, num_stages) for k in stages]
    ends = [start + schedule.lag(k, num_stages) for k, start in enumerate(starts)]
    forward = -1 if all(low < high for low, high in pairwise(starts)) else 1
    backward = 1 if all(low > high for low, high in pairwise(ends)) else -1

    def place(action: Action) -> tuple[int, int, int]:
        k, kind, batch_index = action
        if kind is Kind.FORWARD:
            return batch_index + starts[k], 0, forward * k
        return batch_index + ends[k], 1 + (kind is Kind.UPDATE), backward * k

    return sorted(actions, key=place)
