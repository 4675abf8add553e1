"""Cut a row of costs into consecutive stages so that the slowest stage is as fast as possible.

The slowest stage sets the pace of a pipeline without bubbles.

    costs         2  3  4 | 5  1 | 6         num_stages = 3
    stage costs      9    |  6   | 6         cuts = [3, 5]
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeAlias

from delaygrad.errors import PartitionError

__all__ = ["Fits", "balance", "least_cap"]

Fits: TypeAlias = Callable[[int, int, int], bool]
"""``fits(k, i, j)``: whether stage k may hold the layers i … j-1."""


def balance(rows: Sequence[Sequence[float]], *, fits: Fits | None = None) -> list[int]:
    """Find the cuts that minimise the time of the slowest stage, exactly.

    Stages are consecutive and none is empty. Among the cuts with the smallest maximum, those with
    the smallest sum of squares of the stage times are taken, so that the stages below the maximum
    are even too; among those, the earliest cuts: early stages wait longest and hold the most.

    Args:
        rows: for each stage (at least one) the cost of each layer on that stage's device; finite,
            ≥ 0; any unit.
        fits: which layers a stage may hold, for instance by its memory.
    Returns:
        cuts: index of the first layer of all stages but the first, increasing.
    Raises:
        PartitionError: a cost is out of range, there are fewer layers than stages, or nothing fits.
    Example:
        >>> balance([[2, 3, 4, 5, 1, 6]] * 3)
        [3, 5]
        >>> balance([[1, 1, 1, 9]] * 3)  # a maximum of 9 either way: 1+2 beats 3 in one
        [1, 3]
        >>> balance([[1, 1, 1, 1], [3, 3, 3, 3]])
        [3]
    """
    num_stages, num_layers = len(rows), len(rows[0])
    if num_stages > num_layers:
        raise PartitionError(
            f"more stages than layers (stages: {num_stages}, layers: {num_layers}); lower "
            "num_stages"
        )
    for index, cost in enumerate(cost for row in rows for cost in row):
        if not (math.isfinite(cost) and cost >= 0):
            raise PartitionError(
                f"cost is negative or not finite (index: {index % num_layers}, cost: {cost}); "
                "measure it again"
            )
    ends = [[0.0, *accumulate(row)] for row in rows]

    def time(k: int, i: int, j: int) -> float:
        return ends[k][j] - ends[k][i]

    ceiling, _ = _search(num_layers, num_stages, time, max, fits=fits)
    if ceiling == math.inf:
        raise PartitionError(
            f"no cuts let every stage hold its layers (stages: {num_stages}, layers: "
            f"{num_layers}); raise the limit, or use more stages"
        )

    def square(k: int, i: int, j: int) -> float:
        found = ends[k][j] - ends[k][i]
        return found**2 if found <= ceiling else math.inf

    return _search(num_layers, num_stages, square, operator.add, fits=fits)[1]


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
    return _search(num_layers, num_stages, need, max, grows=False)


def _search(
    num_layers: int,
    num_stages: int,
    cost: Callable[[int, int, int], float],
    combine: Callable[[float, float], float],
    *,
    fits: Fits | None = None,
    grows: bool = True,
) -> tuple[float, list[int]]:
    """Return the least combined cost of all stages, and the first cuts that reach it.

    Where it is infinite there are no cuts.

    Dynamic programming over the suffixes of the layers, from the last stage to the first:
        best[k][i] = min over j of combine(cost(k, i, j), best[k+1][j]), where k may hold i … j-1

    ``grows``: cost(k, i, j) never falls with j, and combining never lowers it.
    """
    last = num_stages - 1
    best = [
        cost(last, i, num_layers) if fits is None or fits(last, i, num_layers) else math.inf
        for i in range(num_layers)
    ]
    choices: list[list[int]] = []  # from the last stage but one to the first: where it ends
    for k in reversed(range(last)):
        found, choice = [math.inf] * num_layers, [num_layers] * num_layers
        end = num_layers - (last - k)  # leaves each later stage a layer
        for i in range(k, end):
            least = math.inf
            for j in range(i + 1, end + 1):
                own = cost(k, i, j)
                if grows and own >= least:
                    break
                total = combine(own, best[j])
                if total < least and (fits is None or fits(k, i, j)):
                    least, choice[i] = total, j
            found[i] = least
        best = found
        choices.append(choice)
    if best[0] == math.inf:
        return math.inf, []
    cuts = [0]
    for choice in reversed(choices):
        cuts.append(choice[cuts[-1]])
    return best[0], cuts[1:]
