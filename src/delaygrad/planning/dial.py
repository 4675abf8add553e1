"""What a batch costs when it is split into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from delaygrad.errors import PartitionError, StageError
from delaygrad.methods import Method
from delaygrad.partition.costs import LayerCost
from delaygrad.partition.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """What M parts of a batch take a stage over the batch at once; 1 if splitting costs nothing."""

    forward: float
    backward: float


PartCosts: TypeAlias = Mapping[int, Sequence[PartCost]]
"""M -> of each stage."""


def counts_of(num_stages: int, own: int) -> list[int]:
    """List the numbers of micro-batches to compare: powers of two around K-1, and one's own.

    Example:
        >>> counts_of(8, 7), counts_of(1, 1)
        ([1, 2, 4, 7, 8, 16], [1])
    """
    end = 2 * (num_stages - 1)
    powers = [2**n for n in range((end - 1).bit_length() + 1)] if end else [1]
    return sorted({*powers, own})


def part_costs(
    measurement: Measurement, counts: Sequence[int], cuts: Sequence[int] = ()
) -> dict[int, list[PartCost]]:
    """Time parts of the batch; a number of parts that the network does not take is left out."""
    found: dict[int, list[PartCost]] = {}
    try:
        whole = measurement.of_parts(1, cuts)
        for count in counts:
            parts = whole if count == 1 else measurement.of_parts(count, cuts)
            found[count] = [
                PartCost(
                    forward=count * part.forward_s / (once.forward_s or 1.0),
                    backward=count * part.backward_s / (once.backward_s or 1.0),
                )
                for part, once in zip(parts, whole, strict=True)
            ]
    except (PartitionError, StageError):
        pass  # too few samples, or a BatchNorm that needs two
    return found


def scaled(stages: Sequence[LayerCost], costs: PartCosts, micro_batches: int) -> list[LayerCost]:
    """Return what stages cost with a batch in parts.

    If a part costs a + b / M, then M parts cost b + a M: linear in M. So an M that was not measured
    lies on the line through the two measured ones next to it.
    """
    if len(costs) < 2:
        return list(stages)
    low, high = sorted(sorted(costs, key=lambda m: abs(math.log(m / micro_batches)))[:2])
    part = (micro_batches - low) / (high - low)
    return [
        replace(
            stage,
            forward_s=stage.forward_s * (few.forward + part * (many.forward - few.forward)),
            backward_s=stage.backward_s * (few.backward + part * (many.backward - few.backward)),
        )
        for stage, few, many in zip(stages, costs[low], costs[high], strict=True)
    ]


def with_micro_batches(method: Method, micro_batches: int) -> Method:
    """Return the method with another M."""
    schedule = replace(method.schedule, micro_batches=micro_batches)
    return replace(method, schedule=schedule, complete=None, call=None)
