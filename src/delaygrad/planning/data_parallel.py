"""Predict the alternative to a pipeline: replicas of the whole network."""

from __future__ import annotations

from dataclasses import dataclass

from delaygrad.partition.costs import LayerCost
from delaygrad.planning.link import Link

__all__ = ["DataParallel", "data_parallel"]


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """The same iteration on K replicas of the whole network, each with 1/K of the batch.

    Args:
        best_s: seconds, if the all-reduce hides behind the backward as far as it can.
        worst_s: seconds, if the all-reduce is not hidden at all.
        all_reduce_s: seconds of the ring all-reduce of the gradients alone.
        memory_bytes: of each device.
    """

    best_s: float
    worst_s: float
    all_reduce_s: float
    memory_bytes: int


def data_parallel(
    whole: LayerCost, num_devices: int, link: Link | None, *, slowest_speed: float = 1.0
) -> DataParallel:
    """Predict an iteration of K replicas with 1/K of the batch each.

    The gradients are added up by a ring all-reduce over links like the pipeline's. Half the batch
    is assumed to cost half the time. Small shares cost more.

    Args:
        whole: what the network costs on the device that was measured.
        num_devices: K.
        link: between neighbours in the ring; None costs nothing.
        slowest_speed: of the slowest device, for which all wait, relative to the measured one.
    Example:
        >>> whole = LayerCost(name="0", forward_s=2.0, backward_s=4.0, trainable_bytes=100)
        >>> rival = data_parallel(whole, 2, Link(bandwidth_bytes_per_s=100, latency_s=0))
        >>> rival.best_s, rival.worst_s
        (3.0, 4.0)
    """
    all_reduce_s = link.ring_all_reduce_s(whole.trainable_bytes, num_devices) if link else 0.0
    forward_s = whole.forward_s / num_devices / slowest_speed
    backward_s = whole.backward_s / num_devices / slowest_speed
    update_s = whole.update_s / slowest_speed
    share = whole.saved_bytes + whole.input_bytes
    kept = whole.parameter_bytes + whole.trainable_bytes + whole.optimizer_bytes
    return DataParallel(
        best_s=forward_s + max(backward_s, all_reduce_s) + update_s,
        worst_s=forward_s + backward_s + all_reduce_s + update_s,
        all_reduce_s=all_reduce_s,
        memory_bytes=share // num_devices + kept,
    )
