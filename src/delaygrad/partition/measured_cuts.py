"""Find the cuts that are best by measurement: propose, time the stages whole, correct, repeat.

Layers timed one by one add up badly, and the slowest stage is what counts. So the stages of the
proposed cuts are timed as wholes, the layers' costs are scaled to what was measured, and the exact
search runs again. Of the cuts that were measured, those with the fastest slowest stage are taken.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from delaygrad.partition.balance import Fits, balance
from delaygrad.partition.costs import LayerCost, Seconds, rescaled, stages_of, with_seconds
from delaygrad.partition.measurement import Measurement

__all__ = ["MeasuredCuts", "measured_cuts"]

MAX_ROUNDS = 4
BUDGET_S = 4.0  # no further round starts after this, once there are two


@dataclass(frozen=True, kw_only=True)
class MeasuredCuts:
    """Cuts, and what their stages cost.

    Args:
        cuts: index of the first layer of stages 1 … K-1.
        stages: the layers of each, joined, with the seconds of the whole stage on this machine.
        slowest_s: seconds of the slowest stage, each on a device of its speed.
    """

    cuts: list[int]
    stages: list[LayerCost]
    slowest_s: float


def measured_cuts(
    measurement: Measurement,
    costs: Sequence[LayerCost],
    num_stages: int,
    *,
    groups: Sequence[int] | None = None,
    speeds: Sequence[float] | None = None,
    again: Sequence[bool] | None = None,
    fits: Fits | None = None,
) -> MeasuredCuts:
    """Find the cuts that minimise the slowest stage, by at most four rounds of measurement.

    Two rounds at least unless the second proposes the same cuts; no further one starts after about
    four seconds.

    Args:
        measurement: times the stages.
        costs: of each layer.
        num_stages: at most the number of groups.
        groups: index of the first layer of each group that no cut may go through; by default each
            layer is one.
        speeds: of each stage's device, relative to this one; by default all 1.
        again: whether each stage runs its forward a second time (recomputation); by default none.
        fits: which groups a stage may hold.
    Raises:
        PartitionError: as `balance`.
    """
    groups = range(len(costs)) if groups is None else groups
    speeds = [1.0] * num_stages if speeds is None else speeds
    again = [False] * num_stages if again is None else again
    devices = list(zip(speeds, again, strict=True))
    scaled, found = list(costs), dict[tuple[int, ...], MeasuredCuts]()
    stop_at = time.perf_counter() + BUDGET_S
    while len(found) < 2 or (len(found) < MAX_ROUNDS and time.perf_counter() < stop_at):
        pieces = stages_of(scaled, groups[1:])
        rows = [[_time(cost, *device) for cost in pieces] for device in devices]
        cuts = [groups[index] for index in balance(rows, fits=fits)]
        if tuple(cuts) in found:
            break
        seconds = measurement.stages(cuts)
        found[tuple(cuts)] = MeasuredCuts(
            cuts=cuts,
            stages=with_seconds(stages_of(costs, cuts), seconds),
            slowest_s=max(_time(s, *device) for s, device in zip(seconds, devices, strict=True)),
        )
        scaled = rescaled(scaled, cuts, seconds)
    return min(found.values(), key=lambda each: each.slowest_s)


def _time(cost: Seconds, speed: float, again: bool) -> float:
    return (cost.total_s + (cost.forward_s if again else 0.0)) / speed
