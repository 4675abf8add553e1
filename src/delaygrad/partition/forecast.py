"""Predict how a pipeline of given stages will run, and what would run better.

Nothing is measured here: times, bytes and the link go in, seconds, bytes and advice come out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from delaygrad.partition.costs import LayerCost, Seconds
from delaygrad.partition.link import Link
from delaygrad.partition.memory import StageMemory, Waiting, stage_memory
from delaygrad.partition.pace import Boundary, iteration_s

__all__ = ["DataParallel", "Forecast", "Pipelined", "data_parallel", "forecast", "with_seconds"]

_WORTH = 0.03  # a gain below this is not worth a longer delay


@dataclass(frozen=True, kw_only=True)
class Pipelined:
    """How the batches run through the stages.

    Args:
        lag: (stage_index, num_stages, slack) -> ticks between forward and backward.
        slack: ticks more of delay per boundary.
        slacks: those that the user could choose; empty where there is no choice.
        micro_batches: M per update.
        recompute: a waiting batch's forward runs again.
        stash_rounded: waiting activations are kept in a 2-byte type.
        boundary_rounded: what is sent is.
    """

    lag: Callable[[int, int, int], int]
    slack: int = 0
    slacks: tuple[int, ...] = ()
    micro_batches: int = 1
    recompute: bool = False
    stash_rounded: bool = False
    boundary_rounded: bool = False

    def lags(self, num_stages: int, slack: int | None = None) -> list[int]:
        """Ticks between forward and backward of each stage."""
        slack = self.slack if slack is None else slack
        return [self.lag(k, num_stages, slack) for k in range(num_stages)]

    def waiting(self, num_stages: int) -> list[Waiting]:
        """What each stage's batches wait for."""
        lags = self.lags(num_stages)
        under_way = [lag - next_lag + 1 for lag, next_lag in pairwise(lags)]
        return [
            Waiting(
                lag=lag,
                micro_batches=self.micro_batches,
                recompute=self.recompute,
                rounded=self.stash_rounded,
                sends_below=below,
                sends_above=above,
            )
            for lag, below, above in zip(lags, [0, *under_way], [*under_way, 0], strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """The same iteration on K replicas of the whole network, each with 1/K of the batch.

    Args:
        best_s: seconds, if the all-reduce hides behind the backward as far as it can.
        worst_s: seconds, if nothing of it is hidden.
        all_reduce_s: seconds of the ring all-reduce of the gradients alone.
        memory_bytes: of each device.
    """

    best_s: float
    worst_s: float
    all_reduce_s: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A pipeline on K devices.

    Args:
        iteration_s: seconds of an iteration in steady state, on K devices of their own.
        slowest_s: seconds of the slowest stage.
        exposed_s: iteration_s - slowest_s: waiting for neighbours and the link.
        stages: seconds of each stage, on its device, recomputation included.
        memory: of each stage.
        boundaries: bytes per iteration.
        sent_bytes: per iteration over all boundaries, both directions.
        slack_s: seconds of an iteration by slack, where there is a choice.
        data_parallel: the rival.
        advice: what to do, in sentences.
    """

    iteration_s: float
    slowest_s: float
    exposed_s: float
    stages: list[Seconds]
    memory: list[StageMemory]
    boundaries: list[Boundary]
    sent_bytes: float
    slack_s: dict[int, float]
    data_parallel: DataParallel
    advice: list[str]


def forecast(
    stages: Sequence[LayerCost],
    whole: LayerCost,
    how: Pipelined,
    link: Link | None,
    *,
    speeds: Sequence[float] | None = None,
) -> Forecast:
    """Predict an iteration of a pipeline.

    Micro-batches are taken to cost 1/M of the batch each, which flatters small ones.

    Args:
        stages: what each stage costs on the device that was measured.
        whole: the same of the whole network on it.
        how: schedule and memory levers.
        link: between neighbours; None costs nothing.
        speeds: of each stage's device, relative to that one; by default all 1.
    """
    num_stages = len(stages)
    speeds = [1.0] * num_stages if speeds is None else speeds
    lags, waiting = how.lags(num_stages), how.waiting(num_stages)
    seconds = [
        _on_device(stage, speed, again=how.recompute and lag > 0)
        for stage, speed, lag in zip(stages, speeds, lags, strict=True)
    ]
    fraction = 0.5 if how.boundary_rounded else 1.0
    boundaries = [
        Boundary(
            activation_bytes=stage.output_bytes * fraction,
            gradient_bytes=stage.gradient_bytes * fraction,
        )
        for stage in stages[:-1]
    ]

    def pace(slack: int) -> float:
        return iteration_s(
            seconds,
            how.lags(num_stages, slack),
            boundaries=boundaries,
            link=link,
            micro_batches=how.micro_batches,
        )

    own_s = pace(how.slack)
    slowest_s = max(stage.total_s for stage in seconds)
    slack_s = {slack: pace(slack) for slack in how.slacks}
    rival = data_parallel(whole, num_stages, link, slowest_speed=min(speeds))
    return Forecast(
        iteration_s=own_s,
        slowest_s=slowest_s,
        exposed_s=max(own_s - slowest_s, 0.0),
        stages=seconds,
        memory=[
            stage_memory(stage, wait, is_last=k == num_stages - 1)
            for k, (stage, wait) in enumerate(zip(stages, waiting, strict=True))
        ],
        boundaries=boundaries,
        sent_bytes=sum(b.activation_bytes + b.gradient_bytes for b in boundaries),
        slack_s=slack_s,
        data_parallel=rival,
        advice=_advice(own_s, slowest_s, slack_s, how.slack, boundaries, link, rival),
    )


def data_parallel(
    whole: LayerCost, num_devices: int, link: Link | None, *, slowest_speed: float = 1.0
) -> DataParallel:
    """Predict an iteration of K replicas with 1/K of the batch each.

    The gradients are added up by a ring all-reduce over links like the pipeline's. Half the batch
    is taken to cost half the time, which flatters small shares.

    Args:
        whole: what the network costs on the device that was measured.
        num_devices: K.
        link: between neighbours in the ring; None costs nothing.
        slowest_speed: of the slowest device, relative to that one: all wait for it.
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


def _on_device(stage: Seconds, speed: float, *, again: bool) -> Seconds:
    backward_s = stage.backward_s + (stage.forward_s if again else 0.0)
    return Seconds(
        forward_s=stage.forward_s / speed,
        backward_s=backward_s / speed,
        update_s=stage.update_s / speed,
    )


def _advice(
    own_s: float,
    slowest_s: float,
    slack_s: dict[int, float],
    slack: int,
    boundaries: Sequence[Boundary],
    link: Link | None,
    rival: DataParallel,
) -> list[str]:
    advice = []
    transfer_s = max(
        (link.transfer_s(max(b.activation_bytes, b.gradient_bytes)) for b in boundaries if link),
        default=0.0,
    )
    if transfer_s > slowest_s:
        advice.append(
            f"the link is the bottleneck: {_ms(transfer_s)} to send a batch in one direction, "
            f"{_ms(slowest_s)} to compute it; send less (boundary_dtype, other cuts) or use a "
            "faster link"
        )
    if slack_s:
        advice += _advice_on_slack(own_s, slack_s, slack)
        own_s = min(own_s, *slack_s.values())
    if boundaries and rival.worst_s < own_s:
        advice.append(
            f"data parallelism is faster here: {_ms(rival.worst_s)} even if none of its all-reduce "
            "is hidden"
        )
    elif boundaries and rival.best_s < own_s * (1 - _WORTH):
        advice.append(
            f"data parallelism may be faster: {_ms(rival.best_s)} if its all-reduce hides behind "
            f"the backward, {_ms(rival.worst_s)} if it does not"
        )
    return advice


def _advice_on_slack(own_s: float, slack_s: dict[int, float], slack: int) -> list[str]:
    least = min(slack_s.values())
    wanted = min(option for option, time in slack_s.items() if time <= least * (1 + _WORTH))
    if wanted > slack and slack_s[wanted] < own_s * (1 - _WORTH):
        return [f"use slack {wanted}: it hides the link ({_ms(own_s)} -> {_ms(slack_s[wanted])})"]
    if wanted < slack:
        return [f"slack {wanted} would do: {_ms(slack_s[wanted])}, with less delay"]
    return []


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def with_seconds(stages: Sequence[LayerCost], measured: Sequence[Seconds]) -> list[LayerCost]:
    """Give joined layers the times that were measured of them as a whole."""
    return [
        replace(
            stage,
            forward_s=seconds.forward_s,
            backward_s=seconds.backward_s,
            update_s=seconds.update_s,
        )
        for stage, seconds in zip(stages, measured, strict=True)
    ]
