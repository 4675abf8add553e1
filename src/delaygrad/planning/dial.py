"""What a batch costs when it is split into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from delaygrad.errors import PartitionError, StageError
from delaygrad.methods import Method
from delaygrad.partition.costs import LayerCost
from delaygrad.partition.measurement import Measurement

__all__ = ["PartCost", "counts_of", "part_costs", "scaled", "with_micro_batches"]


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """What M parts of a batch take over the batch at once; 1 if splitting costs nothing."""

    forward: float
    backward: float


def counts_of(num_stages: int, own: int) -> list[int]:
    """List the numbers of micro-batches to compare: powers of two around K-1, and one's own.

    Example:
        >>> counts_of(8, 7), counts_of(1, 1)
        ([1, 2, 4, 7, 8, 16], [1])
    """
    end = 2 * (num_stages - 1)
    powers = [2**n for n in range((end - 1).bit_length() + 1)] if end else [1]
    return sorted({*powers, own})


def part_costs(measurement: Measurement, counts: Sequence[int]) -> dict[int, PartCost]:
    """Time parts of the batch; a number of parts that the network does not take is left out."""
    found: dict[int, PartCost] = {}
    try:
        whole = measurement.of_parts(1)
        for count in counts:
            part = whole if count == 1 else measurement.of_parts(count)
            found[count] = PartCost(
                forward=count * part.forward_s / (whole.forward_s or 1.0),
                backward=count * part.backward_s / (whole.backward_s or 1.0),
            )
    except (PartitionError, StageError):
        pass  # too few samples, or a BatchNorm that needs two
    return found


def scaled(
    stages: Sequence[LayerCost], costs: Mapping[int, PartCost], micro_batches: int
) -> list[LayerCost]:
    """Return what stages cost with a batch in parts; as measured at once where it is not known."""
    cost = costs.get(micro_batches)
    if cost is None or micro_batches == 1:
        return list(stages)
    return [
        replace(
            stage,
            forward_s=stage.forward_s * cost.forward,
            backward_s=stage.backward_s * cost.backward,
        )
        for stage in stages
    ]


def with_micro_batches(method: Method, micro_batches: int) -> Method:
    """Return the method with another M."""
    schedule = replace(method.schedule, micro_batches=micro_batches)
    return replace(method, schedule=schedule, complete=None, call=None)
