"""Cut a row of costs into consecutive stages so that the slowest stage is as fast as possible.

The slowest stage sets the pace of a pipeline without bubbles (DESIGN.md, 2, Time).

    costs         2  3  4 | 5  1 | 6         num_stages = 3
    stage costs      9    |  6   | 6         cuts = [3, 5]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from delaygrad.errors import PartitionError

__all__ = ["balance"]


def balance(costs: Sequence[float], num_stages: int) -> list[int]:
    """Find the cuts that minimise the cost of the most expensive stage, exactly.

    Stages are consecutive and none is empty. Among the cuts with the smallest maximum, those with
    the smallest sum of squares of the stage costs are taken, so that the stages below the maximum
    are even too; among those, the earliest cuts: early stages wait longest and hold the most.
    Dynamic programming over the suffixes of `costs`, once for the maximum and once for the
    squares under that maximum:
        worst[k][i]   = min over j of max(cost(i, j), worst[k-1][j])
        squares[k][i] = min over j with cost(i, j) ≤ worst[K][0] of cost(i, j)² + squares[k-1][j]

    Args:
        costs: of each layer, finite, ≥ 0; any unit.
        num_stages: 1 … len(costs).
    Returns:
        cuts: index of the first layer of stages 1 … num_stages-1, increasing.
    Raises:
        PartitionError: a cost is negative or not finite, or num_stages is out of range.
    Example:
        >>> balance([2, 3, 4, 5, 1, 6], num_stages=3)
        [3, 5]
        >>> balance([1, 1, 1, 9], num_stages=3)  # a maximum of 9 either way: 1+2 beats 3 in one
        [1, 3]
    """
    _check(costs, num_stages)
    ends = [0.0, *accumulate(costs)]
    ceiling = _smallest_maximum(ends, num_stages)
    return _fewest_squares(ends, num_stages, ceiling)


def _smallest_maximum(ends: list[float], num_stages: int) -> float:
    num_layers = len(ends) - 1
    worst = [ends[-1] - start for start in ends[:-1]]  # one stage: everything from `start` on
    for stages in range(2, num_stages + 1):
        longer = [math.inf] * num_layers
        for i in range(num_layers - stages + 1):
            for j in range(i + 1, num_layers - stages + 2):
                first = ends[j] - ends[i]
                longer[i] = min(longer[i], max(first, worst[j]))
                if first >= longer[i]:
                    break  # the first stage only grows with j
        worst = longer
    return worst[0]


def _fewest_squares(ends: list[float], num_stages: int, ceiling: float) -> list[int]:
    num_layers = len(ends) - 1
    rest = [ends[-1] - start for start in ends[:-1]]
    squares = [cost**2 if cost <= ceiling else math.inf for cost in rest]
    choices: list[list[int]] = []  # choices[s-2][i]: where the first of s stages from i on ends
    for stages in range(2, num_stages + 1):
        longer, choice = [math.inf] * num_layers, [num_layers] * num_layers
        for i in range(num_layers - stages + 1):
            for j in range(i + 1, num_layers - stages + 2):
                first = ends[j] - ends[i]
                if first > ceiling:
                    break
                if first**2 + squares[j] < longer[i]:
                    longer[i], choice[i] = first**2 + squares[j], j
        squares = longer
        choices.append(choice)
    cuts = [0]
    for choice in reversed(choices):
        cuts.append(choice[cuts[-1]])
    return cuts[1:]


def _check(costs: Sequence[float], num_stages: int) -> None:
    if num_stages < 1:
        raise PartitionError(f"too few stages (stages: {num_stages}); ask for at least 1")
    if num_stages > len(costs):
        raise PartitionError(
            f"more stages than layers (stages: {num_stages}, layers: {len(costs)}); "
            "lower num_stages"
        )
    for index, cost in enumerate(costs):
        if not (math.isfinite(cost) and cost >= 0):
            raise PartitionError(
                f"cost is negative or not finite (index: {index}, cost: {cost}); measure it again"
            )
