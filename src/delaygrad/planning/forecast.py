"""Predict how a pipeline of given stages will run, and what would run better.

Nothing is measured here: times, bytes and the link go in, seconds, bytes and advice come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from delaygrad.methods import Method
from delaygrad.partition.costs import LayerCost, Seconds
from delaygrad.planning.link import Link
from delaygrad.planning.simulate import Boundary, iteration_s
from delaygrad.planning.stage_memory import StageMemory, stage_memory
from delaygrad.schedule import locked

__all__ = ["DataParallel", "Forecast", "Here", "StageForecast", "data_parallel", "forecast"]

_SLACKS = (0, 1, 2)  # that are tried
_WORTH = 0.03  # a gain below this is not worth a longer delay


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
class Here:
    """All processes of a pipeline on this machine.

    Args:
        cores: of this machine.
        threads: of each process.
        slowdown: time of processes that compute at once over the time of one alone.
        link: between two of them; None costs nothing.
    """

    cores: int
    threads: int = 1
    slowdown: float = 1.0
    link: Link | None = None

    @property
    def at_once(self) -> int:
        """How many processes have cores of their own."""
        return max(self.cores // self.threads, 1)


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """One stage.

    Args:
        first_layer: its name.
        speed: of its device.
        lag: ticks between forward and backward.
        delay: updates between forward and backward, at most.
        seconds: of a batch on its device, recomputation included.
        memory: in bytes.
    """

    first_layer: str
    speed: float
    lag: int
    delay: int
    seconds: Seconds
    memory: StageMemory


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A pipeline on K devices.

    Args:
        method: by which it trains.
        stages: K.
        boundaries: bytes per iteration.
        one_device_s: seconds of an iteration of the whole network on one device.
        iteration_s: seconds of an iteration in steady state, on K devices of their own.
        slack_s: seconds of an iteration by slack, where there is a choice.
        here: this machine.
        here_s: seconds of an iteration with all processes on this machine.
        data_parallel: the rival.
        advice: what to do, in sentences.
        command: what cuts the network like this.
    """

    method: Method
    stages: tuple[StageForecast, ...]
    boundaries: tuple[Boundary, ...]
    one_device_s: float
    iteration_s: float
    slack_s: dict[int, float]
    here: Here
    here_s: float
    data_parallel: DataParallel
    advice: tuple[str, ...]
    command: str

    @property
    def cuts(self) -> list[str]:
        """First layers of all stages but the first."""
        return [stage.first_layer for stage in self.stages[1:]]

    @property
    def slowest_s(self) -> float:
        """Seconds of the slowest stage."""
        return max(stage.seconds.total_s for stage in self.stages)

    @property
    def exposed_s(self) -> float:
        """Seconds of an iteration in which even the slowest stage waits."""
        return max(self.iteration_s - self.slowest_s, 0.0)

    @property
    def sent_bytes(self) -> float:
        """Bytes per iteration over all boundaries, in both directions."""
        return sum(each.activation_bytes + each.gradient_bytes for each in self.boundaries)

    @property
    def speedup(self) -> float:
        """Over one device."""
        return self.one_device_s / self.iteration_s

    @property
    def efficiency(self) -> float:
        """Speed-up per device, weighed by its speed."""
        return self.speedup / sum(stage.speed for stage in self.stages)

    @property
    def crowded(self) -> bool:
        """Whether the processes want more cores than this machine has."""
        return len(self.stages) * self.here.threads > self.here.cores

    def shares(self) -> list[float]:
        """Return what part of all stages' seconds each stage takes."""
        seconds = [stage.seconds.total_s for stage in self.stages]
        return [each / sum(seconds) if sum(seconds) else 0.0 for each in seconds]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "stages": len(self.stages),
            "method": repr(self.method),
            "cuts": self.cuts,
            "iteration_s": self.iteration_s,
            "speedup": self.speedup,
            "efficiency": self.efficiency,
            "slowest_stage_s": self.slowest_s,
            "exposed_s": self.exposed_s,
            "sent_bytes": self.sent_bytes,
            "boundaries": [vars(boundary) for boundary in self.boundaries],
            "iteration_by_slack_s": {str(slack): time for slack, time in self.slack_s.items()},
            "data_parallel": vars(self.data_parallel),
            "here": {
                "iteration_s": self.here_s,
                "cores": self.here.cores,
                "crowded": self.crowded,
            },
            "stage_plans": [
                {
                    "stage": k,
                    "first_layer": stage.first_layer,
                    "speed": stage.speed,
                    "lag": stage.lag,
                    "delay": stage.delay,
                    **stage.seconds.times(),
                    "share": share,
                    "memory": {**vars(stage.memory), "total_bytes": stage.memory.total_bytes},
                }
                for k, (stage, share) in enumerate(zip(self.stages, self.shares(), strict=True))
            ],
            "advice": list(self.advice),
            "command": self.command,
        }


def forecast(
    stages: Sequence[LayerCost],
    whole: LayerCost,
    method: Method,
    link: Link | None,
    *,
    speeds: Sequence[float] | None = None,
    here: Here | None = None,
) -> Forecast:
    """Predict an iteration of a pipeline.

    Micro-batches are taken to cost 1/M of the batch each, which flatters small ones.

    Args:
        stages: what each stage costs on the device that was measured.
        whole: the same of the whole network on it.
        method: its schedule, and what it keeps, sends and computes again.
        link: between neighbours; None costs nothing.
        speeds: of each stage's device, relative to that one; by default all 1.
        here: this machine; by default it has a core for each stage.
    """
    num_stages, schedule = len(stages), method.schedule
    speeds = [1.0] * num_stages if speeds is None else speeds
    found = tuple(
        _stage(stage, method, k, num_stages, speed)
        for k, (stage, speed) in enumerate(zip(stages, speeds, strict=True))
    )
    seconds = [stage.seconds for stage in found]
    fraction = 1.0 if method.boundary_dtype is None else 0.5
    boundaries = tuple(
        Boundary(
            activation_bytes=stage.output_bytes * fraction,
            gradient_bytes=stage.gradient_bytes * fraction,
        )
        for stage in stages[:-1]
    )
    time = partial(iteration_s, seconds, boundaries=boundaries, link=link)
    slacks = () if schedule.slack is None else _SLACKS
    own_s = time(schedule)
    slack_s = {slack: time(locked(slack, schedule.micro_batches)) for slack in slacks}
    rival = data_parallel(whole, num_stages, link, slowest_speed=min(speeds))
    here = here or Here(cores=num_stages)
    names = ", ".join(repr(stage.name) for stage in stages[1:])
    return Forecast(
        method=method,
        stages=found,
        boundaries=boundaries,
        one_device_s=whole.total_s,
        iteration_s=own_s,
        slack_s=slack_s,
        here=here,
        here_s=_here_s(found, method, boundaries, here),
        data_parallel=rival,
        advice=(
            *_advice_on_link(seconds, boundaries, link),
            *_advice_on_slack(own_s, slack_s, schedule.slack),
            *_advice_on_rival(min([own_s, *slack_s.values()]), boundaries, rival),
        ),
        command=f"dg.split(model, {num_stages}, cuts=[{names}])",
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


def _stage(
    cost: LayerCost, method: Method, stage_index: int, num_stages: int, speed: float
) -> StageForecast:
    schedule = method.schedule
    lag = schedule.lag(stage_index, num_stages)
    again_s = cost.forward_s if method.recompute and lag > 0 else 0.0
    return StageForecast(
        first_layer=cost.name,
        speed=speed,
        lag=lag,
        delay=schedule.delay(stage_index, num_stages),
        seconds=Seconds(
            forward_s=cost.forward_s / speed,
            backward_s=(cost.backward_s + again_s) / speed,
            update_s=cost.update_s / speed,
        ),
        memory=stage_memory(cost, method, stage_index, num_stages),
    )


def _here_s(
    stages: Sequence[StageForecast], method: Method, boundaries: Sequence[Boundary], here: Here
) -> float:
    together = any(stage.lag for stage in stages)
    slowed = [stage.seconds.slowed(here.slowdown if together else 1.0) for stage in stages]
    time = iteration_s(slowed, method.schedule, boundaries=boundaries, link=here.link)
    if len(stages) * here.threads > here.cores:  # the cores cannot do more work than there is time
        time = max(time, sum(stage.total_s for stage in slowed) / here.at_once)
    return time


def _advice_on_link(
    seconds: Sequence[Seconds], boundaries: Sequence[Boundary], link: Link | None
) -> list[str]:
    slowest_s = max(stage.total_s for stage in seconds)
    largest = max((max(vars(each).values()) for each in boundaries), default=0.0)
    transfer_s = link.transfer_s(largest) if link else 0.0
    if transfer_s <= slowest_s:
        return []
    return [
        f"the link is the bottleneck: {milliseconds(transfer_s)} to send a batch in one direction, "
        f"{milliseconds(slowest_s)} to compute it; send less (boundary_dtype, other cuts) or use a "
        "faster link"
    ]


def _advice_on_slack(own_s: float, slack_s: dict[int, float], slack: int | None) -> list[str]:
    if slack is None:
        return []
    least = min(slack_s.values())
    wanted = min(option for option, time in slack_s.items() if time <= least * (1 + _WORTH))
    wanted_s = milliseconds(slack_s[wanted])
    if wanted > slack and slack_s[wanted] < own_s * (1 - _WORTH):
        return [f"use slack {wanted}: it hides the link ({milliseconds(own_s)} -> {wanted_s})"]
    if wanted < slack:
        return [f"slack {wanted} would do: {wanted_s}, with less delay"]
    return []


def _advice_on_rival(
    own_s: float, boundaries: Sequence[Boundary], rival: DataParallel
) -> list[str]:
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
