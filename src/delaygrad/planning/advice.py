"""What would run better, in sentences, and the alternative to a pipeline: replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from delaygrad.methods import Method
from delaygrad.partition.costs import LayerCost
from delaygrad.planning.link import Link
from delaygrad.planning.simulate import Boundary
from delaygrad.schedule import Schedule, locked

_WORTH = 0.03  # a gain below this is not worth a longer delay


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


def on_link(slowest_s: float, boundaries: Sequence[Boundary], link: Link | None) -> list[str]:
    """Say where the link is slower than the slowest stage."""
    largest = max((max(vars(each).values()) for each in boundaries), default=0.0)
    transfer_s = link.transfer_s(largest) if link else 0.0
    if transfer_s <= slowest_s:
        return []
    return [
        f"the link is the bottleneck: {milliseconds(transfer_s)} to send a batch in one direction, "
        f"{milliseconds(slowest_s)} to compute it; send less (boundary_dtype, other cuts) or use a "
        "faster link"
    ]


def on_delay(method: Method, num_stages: int) -> list[str]:
    """Say where gradients are more than one update late."""
    delay = method.schedule.delay(0, num_stages)
    if delay <= 1:
        return []
    needed = (num_stages - 1) * (1 + (method.schedule.slack or 0))
    return [
        f"gradients are up to {delay} updates late, which costs accuracy; use lookahead with "
        f"{needed} micro-batches or more: no gradient is then more than one update late, and the "
        "look-ahead corrects it"
    ]


def on_slack(
    own_s: float, slack_s: dict[int, float], schedule: Schedule, num_stages: int
) -> list[str]:
    """Say which other slack would be better."""
    slack = schedule.slack
    if slack is None or not slack_s:
        return []
    least = min(slack_s.values())
    wanted = min(option for option, time in slack_s.items() if time <= least * (1 + _WORTH))
    wanted_s = milliseconds(slack_s[wanted])
    if wanted > slack and slack_s[wanted] < own_s * (1 - _WORTH):
        gain = f"hides the link ({milliseconds(own_s)} -> {wanted_s})"
        delay = locked(wanted, schedule.micro_batches).delay(0, num_stages)
        if delay <= 1:
            return [f"use slack {wanted}: it {gain}"]
        return [f"slack {wanted} {gain}, but makes gradients up to {delay} updates late"]
    if wanted < slack:
        return [f"slack {wanted} would do: {wanted_s}, with less delay"]
    return []


def on_rival(own_s: float, boundaries: Sequence[Boundary], rival: DataParallel) -> list[str]:
    """Say where data parallelism is faster, or may be."""
    best, worst = milliseconds(rival.best_s), milliseconds(rival.worst_s)
    if boundaries and rival.worst_s < own_s:
        return [
            f"data parallelism is faster here: {worst} even if none of its all-reduce is hidden"
        ]
    if boundaries and rival.best_s < own_s * (1 - _WORTH):
        return [
            f"data parallelism may be faster: {best} if its all-reduce hides behind the backward, "
            f"{worst} if it does not"
        ]
    return []


def milliseconds(seconds: float) -> str:
    """Write a time for people.

    Example:
        >>> milliseconds(1.5), milliseconds(0.00345678)
        ('1,500 ms', '3.46 ms')
    """
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"
