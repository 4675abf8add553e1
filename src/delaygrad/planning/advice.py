"""What would run better, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from delaygrad.methods import Method
from delaygrad.planning.data_parallel import DataParallel
from delaygrad.planning.link import Link
from delaygrad.planning.simulate import Boundary
from delaygrad.schedule import Schedule, locked

_WORTH = 0.03  # a gain below this is not worth a longer delay


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
    if slack is None:
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
