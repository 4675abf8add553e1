"""Predict the memory of a stage from what its layers keep, by formula.

With lag ticks between a micro-batch's forward and its backward, M micro-batches per update and
delay = ceil(lag / M) updates, a stage holds at its peak

    graphs      lag + 1, each 1/M of what the layers' graphs keep for a whole batch; with
                recomputation only the one that is at work; with a 2-byte stash each rounded
    boundaries  lag + 1 inputs, each 1/M: for the graphs, and for a checkpoint
    messages    error gradients that wait until the stage below takes them, and in each direction
                the next one to arrive, each 1/M; with recomputation also the activations that wait
                until the stage above takes them, which are no part of a graph
    working     what the first operations of a backward need beside the whole graph: about three
                tensors of the output's size; with a 2-byte stash of the largest that is unpacked
    parameters, gradients (twice where those of micro-batches are added up), optimizer's state
    stale parameter versions, at most `delay`

Gradients grow while the oldest graph shrinks, so the sum errs on the safe side. With uniform
stages, M = 1 and no slack the graphs add up to A(K+1)/2 and the versions to W(K-1)/2, with A and W
those of the whole network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from delaygrad.errors import PartitionError
from delaygrad.partition.balance import Fits, least_cap
from delaygrad.partition.costs import LayerCost, Storage, join

__all__ = ["StageMemory", "Waiting", "fits_within", "stage_memory"]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What a stage's batches wait for, and how.

    Args:
        lag: ticks between a micro-batch's forward and its backward, ≥ 0.
        micro_batches: M per update.
        recompute: keep inputs only, where lag > 0.
        rounded: keep activations in a 2-byte type, where lag > 0.
        sends_below: error gradients under way to the stage below at a time; 0 on the first stage,
            or where all stages are in one process.
        sends_above: activations under way to the stage above, likewise.
    """

    lag: int
    micro_batches: int = 1
    recompute: bool = False
    rounded: bool = False
    sends_below: int = 0
    sends_above: int = 0

    @property
    def delay(self) -> int:
        """Updates between forward and backward, at most."""
        return -(-self.lag // self.micro_batches)


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes that a stage holds at its peak."""

    graph_bytes: int
    boundary_bytes: int
    message_bytes: int
    working_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    stale_parameter_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return sum(vars(self).values())


def stage_memory(cost: LayerCost, waiting: Waiting, *, is_last: bool) -> StageMemory:
    """Predict the memory of one stage.

    Args:
        cost: its layers, joined.
        waiting: how long its batches wait.
        is_last: its output is the loss, which nobody keeps.
    Example:
        >>> cost = LayerCost(name="0", forward_s=1, backward_s=2, parameter_bytes=8,
        ...     trainable_bytes=8, input_bytes=4, saved={0: Storage(100, 50)})
        >>> memory = stage_memory(cost, Waiting(lag=2), is_last=True)
        >>> memory.graph_bytes, memory.boundary_bytes, memory.stale_parameter_bytes
        (300, 12, 16)
    """
    waits = waiting.lag > 0
    graph = _graph_bytes(cost, rounded=waiting.rounded and waits, is_last=is_last)
    graphs = 1 if waiting.recompute and waits else waiting.lag + 1
    below = (waiting.sends_below + 1) * cost.input_bytes if waiting.sends_below else 0
    above = 0 if is_last or not waits else 2 * cost.gradient_bytes  # in use, and the next
    if waiting.recompute and waits:
        above += waiting.sends_above * cost.output_bytes
    working = 0 if is_last else cost.output_bytes
    if waiting.rounded and waits:
        working = max((storage.num_bytes for storage in cost.saved.values()), default=0)
    return StageMemory(
        graph_bytes=graphs * graph // waiting.micro_batches,
        boundary_bytes=(waiting.lag + 1) * cost.input_bytes // waiting.micro_batches,
        message_bytes=(below + above) // waiting.micro_batches,
        working_bytes=3 * working // waiting.micro_batches,
        parameter_bytes=cost.parameter_bytes,
        gradient_bytes=cost.trainable_bytes * (2 if waits and waiting.micro_batches > 1 else 1),
        optimizer_bytes=cost.optimizer_bytes,
        stale_parameter_bytes=waiting.delay * cost.trainable_bytes,
    )


def _graph_bytes(cost: LayerCost, *, rounded: bool, is_last: bool) -> int:
    # The end of the graph keeps the stage's output, whether or not a layer saves it too.
    kept: dict[int, Storage] = {} if is_last else dict(cost.outputs)
    ends = sum(storage.num_bytes for storage in kept.values())
    if rounded:
        return ends + sum(storage.rounded_bytes for storage in cost.saved.values())
    return ends + sum(s.num_bytes for number, s in cost.saved.items() if number not in kept)


def fits_within(
    costs: Sequence[LayerCost], waiting: Sequence[Waiting], caps_bytes: Sequence[float]
) -> Fits:
    """Make the rule which layers each stage may hold, for `balance`.

    Args:
        costs: of each layer.
        waiting: of each stage.
        caps_bytes: of each stage, positive; infinite for none.
    Raises:
        PartitionError: no cuts keep every stage within its cap; says the least caps that do.
    """
    known: dict[tuple[int, int, int], int] = {}

    def need(k: int, i: int, j: int) -> int:
        if (k, i, j) not in known:
            cost, is_last = join(costs[i:j]), k == len(waiting) - 1
            known[k, i, j] = stage_memory(cost, waiting[k], is_last=is_last).total_bytes
        return known[k, i, j]

    largest, _ = least_cap(len(costs), len(waiting), lambda k, i, j: need(k, i, j) / caps_bytes[k])
    if largest > 1:
        least = ", ".join(f"{cap * largest / 2**20:.4g} MiB" for cap in dict.fromkeys(caps_bytes))
        given = ", ".join(f"{cap / 2**20:.4g} MiB" for cap in dict.fromkeys(caps_bytes))
        raise PartitionError(
            f"the network does not fit the memory cap (stages: {len(waiting)}, cap: {given}, least "
            f"cap that would do: {least}); raise it, use more stages or micro-batches, or "
            "recomputation"
        )
    return lambda k, i, j: need(k, i, j) <= caps_bytes[k] or math.isinf(caps_bytes[k])
