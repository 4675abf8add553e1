"""Cut a row of costs into consecutive stages so that the slowest stage is as fast as possible.

The slowest stage sets the pace of a pipeline without bubbles.

    costs         2  3  4 | 5  1 | 6         num_stages = 3
    stage costs      9    |  6   | 6         cuts = [3, 5]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeAlias

from delaygrad.errors import PartitionError

__all__ = ["Fits", "balance", "balance_rows", "least_cap"]

Fits: TypeAlias = Callable[[int, int, int], bool]
"""``fits(k, i, j)``: whether stage k may hold the layers i … j-1."""


def balance(
    costs: Sequence[float],
    num_stages: int,
    *,
    speeds: Sequence[float] | None = None,
    fits: Fits | None = None,
) -> list[int]:
    """Find the cuts that minimise the time of the slowest stage, exactly.

    Stages are consecutive and none is empty. Among the cuts with the smallest maximum, those with
    the smallest sum of squares of the stage times are taken, so that the stages below the maximum
    are even too; among those, the earliest cuts: early stages wait longest and hold the most.

    Args:
        costs: of each layer, finite, ≥ 0; any unit.
        num_stages: 1 … len(costs).
        speeds: of each stage's device, positive, relative to the device the costs were taken on;
            by default all 1.
        fits: which layers a stage may hold, for instance by its memory.
    Returns:
        cuts: index of the first layer of stages 1 … num_stages-1, increasing.
    Raises:
        PartitionError: a cost or speed is out of range, num_stages is, or nothing fits.
    Example:
        >>> balance([2, 3, 4, 5, 1, 6], num_stages=3)
        [3, 5]
        >>> balance([1, 1, 1, 9], num_stages=3)  # a maximum of 9 either way: 1+2 beats 3 in one
        [1, 3]
        >>> balance([1, 1, 1, 1, 1, 1], num_stages=2, speeds=[1, 0.5])
        [4]
    """
    if num_stages < 1:
        raise PartitionError(f"too few stages (stages: {num_stages}); ask for at least 1")
    speeds = [1.0] * num_stages if speeds is None else speeds
    if len(speeds) != num_stages or not all(0 < speed < math.inf for speed in speeds):
        raise PartitionError(
            f"speeds do not fit the stages (speeds: {list(speeds)}, stages: {num_stages}); "
            "give each stage one positive number"
        )
    return balance_rows([[cost / speed for cost in costs] for speed in speeds], fits=fits)


def balance_rows(rows: Sequence[Sequence[float]], *, fits: Fits | None = None) -> list[int]:
    """Do the same where each stage has costs of its own, for instance a device of its own.

    Dynamic programming over the suffixes of the layers, once for the maximum and once for the
    squares under that maximum, with time(k, i, j) = sum(rows[k][i:j]), infinite where the layers do
    not fit:
        worst[k][i]   = min over j of max(time(k, i, j), worst[k+1][j])
        squares[k][i] = min over j with time(k, i, j) ≤ worst[0][0] of
                        time(k, i, j)² + squares[k+1][j]

    Args:
        rows: one for each stage, at least one; of each layer, finite, ≥ 0; any unit.
        fits: which layers a stage may hold, for instance by its memory.
    Returns:
        cuts: index of the first layer of all stages but the first, increasing.
    Raises:
        PartitionError: a cost is out of range, there are fewer layers than stages, or nothing fits.
    Example:
        >>> balance_rows([[1, 1, 1, 1], [3, 3, 3, 3]])
        [3]
    """
    num_layers = len(rows[0])
    if len(rows) > num_layers:
        raise PartitionError(
            f"more stages than layers (stages: {len(rows)}, layers: {num_layers}); lower num_stages"
        )
    for index, cost in enumerate(cost for row in rows for cost in row):
        if not (math.isfinite(cost) and cost >= 0):
            raise PartitionError(
                f"cost is negative or not finite (index: {index % num_layers}, cost: {cost}); "
                "measure it again"
            )
    table = _Times([[0.0, *accumulate(row)] for row in rows], fits)
    ceiling = _smallest_maximum(table)
    if ceiling == math.inf:
        raise PartitionError(
            f"no cuts let every stage hold its layers (stages: {len(rows)}, layers: {num_layers}); "
            "raise the limit, or use more stages"
        )
    return _fewest_squares(table, ceiling)


def least_cap(
    num_layers: int, num_stages: int, need: Callable[[int, int, int], float]
) -> tuple[float, list[int]]:
    """Find the cuts that minimise the largest need of any stage, exactly.

    Unlike a time, the need may fall where a stage grows by a layer.

    Args:
        num_layers: at least num_stages.
        num_stages: at least 1.
        need: ``need(k, i, j)`` of stage k with the layers i … j-1.
    Returns:
        largest, cuts: the smallest maximum, and the first cuts that reach it.
    Example:
        >>> least_cap(4, 2, lambda k, i, j: (j - i) * (2 - k))
        (3, [1])
    """
    last = num_stages - 1
    worst = [need(last, i, num_layers) for i in range(num_layers)]
    choices: list[list[int]] = []
    for k in reversed(range(last)):
        longer, choice = [math.inf] * num_layers, [num_layers] * num_layers
        for i in range(num_layers - (num_stages - k) + 1):
            for j in range(i + 1, num_layers - (last - k) + 1):
                found = max(need(k, i, j), worst[j])
                if found < longer[i]:
                    longer[i], choice[i] = found, j
        worst = longer
        choices.append(choice)
    return worst[0], _follow(choices)


class _Times:
    """time(k, i, j), infinite where the layers do not fit."""

    def __init__(self, ends: list[list[float]], fits: Fits | None) -> None:
        self.ends, self.fits = ends, fits
        self.num_stages, self.num_layers = len(ends), len(ends[0]) - 1

    def suffixes(self) -> list[float]:
        """The time of the last stage with everything from layer i on; for every i."""
        k, end = self.num_stages - 1, self.num_layers
        ends = self.ends[k]
        return [ends[end] - ends[i] if self.holds(k, i, end) else math.inf for i in range(end)]

    def holds(self, k: int, i: int, j: int) -> bool:
        return self.fits is None or self.fits(k, i, j)


def _smallest_maximum(table: _Times) -> float:
    num_layers = table.num_layers
    worst = table.suffixes()
    for stages in range(2, table.num_stages + 1):
        k = table.num_stages - stages
        longer, ends = [math.inf] * num_layers, table.ends[k]
        for i in range(num_layers - stages + 1):
            for j in range(i + 1, num_layers - stages + 2):
                first = ends[j] - ends[i]
                if first >= longer[i]:
                    break  # the first stage only grows with j
                if max(first, worst[j]) < longer[i] and table.holds(k, i, j):
                    longer[i] = max(first, worst[j])
        worst = longer
    return worst[0]


def _fewest_squares(table: _Times, ceiling: float) -> list[int]:
    num_layers = table.num_layers
    squares = [time**2 if time <= ceiling else math.inf for time in table.suffixes()]
    choices: list[list[int]] = []  # choices[s-2][i]: where the first of s stages from i on ends
    for stages in range(2, table.num_stages + 1):
        k = table.num_stages - stages
        ends = table.ends[k]
        longer, choice = [math.inf] * num_layers, [num_layers] * num_layers
        for i in range(num_layers - stages + 1):
            for j in range(i + 1, num_layers - stages + 2):
                first = ends[j] - ends[i]
                if first > ceiling:
                    break
                if first**2 + squares[j] < longer[i] and table.holds(k, i, j):
                    longer[i], choice[i] = first**2 + squares[j], j
        squares = longer
        choices.append(choice)
    return _follow(choices)


def _follow(choices: list[list[int]]) -> list[int]:
    """Read the cuts off the choices, which were made from the last stage to the first."""
    cuts = [0]
    for choice in reversed(choices):
        cuts.append(choice[cuts[-1]])
    return cuts[1:]
