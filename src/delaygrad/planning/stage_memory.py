"""Predict the memory of a stage from what its layers keep, by formula.

With lag ticks between a micro-batch's forward and its backward, M micro-batches per update and
delay = ceil(lag / M) updates, a stage in a process of its own holds at its peak

    graphs      lag + 1, each 1/M of what the layers' graphs keep for a whole batch; with
                recomputation only the one that is at work; with a 2-byte stash each rounded
    boundaries  lag + 1 inputs, each 1/M: for the graphs, and for a checkpoint
    messages    error gradients that wait until the stage below takes them, and in each direction
                the next one to arrive, each 1/M; with recomputation also the activations that wait
                until the stage above takes them, which are no part of a graph
    ties        of each value that an owner has lent, two copies for each micro-batch in flight (as
                arrived, and in the graph), and two messages at each end; parts of the two above
    working     what the first operations of a backward need in addition to the whole graph: about
                three tensors of the output's size; with a 2-byte stash of the largest that is
                unpacked
    parameters, gradients (twice where those of micro-batches are added up), optimizer's state
    stale parameter versions, at most `delay`; none where a backward meets the live parameters; with
                predicted parameters two more: those, and the parameters before the last update

Gradients grow while the oldest graph shrinks, so the sum errs on the safe side. With uniform
stages, M = 1 and no slack the graphs add up to A(K+1)/2 and the versions to W(K-1)/2, with A and W
those of the whole network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from delaygrad.errors import PartitionError
from delaygrad.methods import Method
from delaygrad.partition.balance import Fits, least_cap
from delaygrad.partition.costs import LayerCost, Storage, join
from delaygrad.partition.graph.ties import TiedParameter


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
        """The sum of all parts."""
        return sum(vars(self).values())


def stage_memory(
    cost: LayerCost,
    method: Method,
    stage_index: int,
    num_stages: int,
    ties: Sequence[TiedParameter] = (),
) -> StageMemory:
    """Predict the memory of one stage.

    Args:
        cost: its layers, joined.
        method: decides how long batches wait, and what is kept of them.
        stage_index: 0 … num_stages-1.
        num_stages: K.
        ties: parameters that stages share.
    Example:
        >>> from delaygrad.methods import DDG
        >>> cost = LayerCost(name="0", forward_s=1, backward_s=2, parameter_bytes=8,
        ...     trainable_bytes=8, input_bytes=4, saved={0: Storage(100, 50)})
        >>> memory = stage_memory(cost, DDG(), stage_index=0, num_stages=3)
        >>> memory.graph_bytes, memory.boundary_bytes, memory.stale_parameter_bytes
        (300, 12, 16)
    """
    schedule, is_last = method.schedule, stage_index == num_stages - 1
    lag, parts = schedule.lag(stage_index, num_stages), schedule.micro_batches
    waits = lag > 0
    rounded = waits and method.stash_dtype is not None
    recompute = waits and method.recompute
    # The last stage's output is the loss, which nobody keeps.
    kept = {} if is_last else cost.outputs
    lent = sum(tie.num_bytes for tie in ties if stage_index in tie.borrowers)
    lending = sum(tie.num_bytes * len(tie.borrowers) for tie in ties if stage_index == tie.owner)
    return StageMemory(
        graph_bytes=(1 if recompute else lag + 1) * _graph_bytes(cost, kept, rounded) // parts,
        boundary_bytes=(lag + 1) * cost.input_bytes // parts + 2 * (lag + 1) * lent,
        message_bytes=_message_bytes(cost, method, stage_index, num_stages) // parts
        + 2 * (lent + lending),
        working_bytes=3 * _working_bytes(cost, rounded, is_last) // parts,
        parameter_bytes=cost.parameter_bytes,
        gradient_bytes=cost.trainable_bytes * (2 if waits and parts > 1 else 1),
        optimizer_bytes=cost.optimizer_bytes,
        stale_parameter_bytes=_versions(method, stage_index, num_stages) * cost.trainable_bytes,
    )


def _versions(method: Method, stage_index: int, num_stages: int) -> int:
    schedule = method.schedule
    stashes = method.linearise.weights == "stash"
    waiting = schedule.delay(stage_index, num_stages) if stashes else 0
    ahead = method.forward_weights.horizon_in_updates(schedule, stage_index, num_stages)
    return waiting if ahead is None else waiting + 2


def _graph_bytes(cost: LayerCost, kept: Mapping[int, Storage], rounded: bool) -> int:
    # The end of the graph keeps the stage's output, whether or not a layer saves it too.
    ends = sum(storage.num_bytes for storage in kept.values())
    if rounded:
        return ends + sum(storage.rounded_bytes for storage in cost.saved.values())
    return ends + sum(s.num_bytes for number, s in cost.saved.items() if number not in kept)


def _message_bytes(cost: LayerCost, method: Method, stage_index: int, num_stages: int) -> int:
    schedule, num_bytes = method.schedule, 0
    if stage_index > 0:
        under_way = schedule.messages_under_way(stage_index - 1, num_stages)
        num_bytes += (under_way + 1) * cost.input_bytes
    if stage_index < num_stages - 1 and schedule.lag(stage_index, num_stages) > 0:
        num_bytes += 2 * cost.gradient_bytes  # the one in use, and the next
        if method.recompute:
            num_bytes += schedule.messages_under_way(stage_index, num_stages) * cost.output_bytes
    return num_bytes


def _working_bytes(cost: LayerCost, rounded: bool, is_last: bool) -> int:
    if rounded:
        return max((storage.num_bytes for storage in cost.saved.values()), default=0)
    return 0 if is_last else cost.output_bytes


def fits_within(
    costs: Sequence[LayerCost], method: Method, num_stages: int, cap_bytes: float
) -> Fits:
    """Return the rule for `balance` that says which layers a stage may hold.

    Args:
        costs: of each layer.
        method: decides how batches wait.
        num_stages: K.
        cap_bytes: memory of a stage, positive.
    Raises:
        PartitionError: no cuts keep every stage within the cap; names the smallest cap that works.
    """

    @cache
    def need(k: int, i: int, j: int) -> int:
        return stage_memory(join(costs[i:j]), method, k, num_stages).total_bytes

    least, _ = least_cap(len(costs), num_stages, need)
    if least > cap_bytes:
        raise PartitionError(
            f"the network does not fit the memory cap (stages: {num_stages}, cap: "
            f"{cap_bytes / 2**20:.4g} MiB, least cap that would do: {least / 2**20:.4g} MiB); "
            "raise it, use more stages or micro-batches, or recomputation"
        )
    return lambda k, i, j: need(k, i, j) <= cap_bytes
