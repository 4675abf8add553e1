"""Predict how a pipeline of given stages will run.

Nothing is measured here: times, bytes and the link are given; seconds, bytes and advice follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from delaygrad.methods import Method
from delaygrad.partition.costs import LayerCost, Seconds
from delaygrad.partition.graph.ties import TiedParameter
from delaygrad.planning import advice
from delaygrad.planning.advice import DataParallel, data_parallel
from delaygrad.planning.link import Link
from delaygrad.planning.simulate import Boundary, Ties, iteration_s
from delaygrad.planning.stage_memory import StageMemory, stage_memory
from delaygrad.schedule import locked


@dataclass(frozen=True, kw_only=True)
class Host:
    """This machine.

    Args:
        cores: of the machine.
        threads: of each process.
        slowdown: time of processes that compute at once / the time of one alone.
        link: between two processes; None costs nothing.
    """

    cores: int
    threads: int = 1
    slowdown: float = 1.0
    link: Link | None = None


@dataclass(frozen=True, kw_only=True)
class Here:
    """All processes of the pipeline on this machine; ``crowded``: there are too few cores."""

    iteration_s: float
    cores: int
    crowded: bool


@dataclass(frozen=True, kw_only=True)
class DialRow:
    """The pipeline with M micro-batches.

    Args:
        micro_batches: M.
        iteration_s: seconds of an iteration in steady state, on K devices of their own.
        speedup: over one device.
        delay: of the first stage, in updates.
        memory_bytes: of the stage that needs the most.
    """

    micro_batches: int
    iteration_s: float
    speedup: float
    delay: int
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class StagePlan(Seconds):
    """One stage; seconds are on its own device, recomputation included.

    Args:
        stage: index of the stage.
        first_layer: name of the stage's first layer.
        speed: of the stage's device.
        lag: ticks between forward and backward.
        delay: updates between forward and backward, at most.
        share: part of the seconds of all stages.
        memory: in bytes.
    """

    stage: int
    first_layer: str
    speed: float
    lag: int
    delay: int
    share: float
    memory: StageMemory


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A pipeline on K devices.

    Args:
        stages: K.
        method: the method, in words.
        cuts: first layers of all stages but the first.
        iteration_s: seconds of an iteration in steady state, on K devices of their own.
        speedup: over one device.
        efficiency: the speed-up over the sum of the devices' speeds.
        slowest_stage_s: seconds of the slowest stage.
        exposed_s: seconds of an iteration in which the slowest stage waits.
        sent_bytes: per iteration over all boundaries, in both directions.
        boundaries: bytes per iteration of each; a parameter that neighbours share is part of them.
        ties: the parameters that stages share, in ``sent_bytes`` too.
        tie_bytes: per iteration of all of them, in both directions.
        iteration_by_slack_s: if the method has the option.
        data_parallel: the alternative.
        here: all processes on this machine.
        stage_plans: one for each stage.
        advice: what to do, in sentences.
        command: the command that cuts the network like this.
        dial: other numbers of micro-batches.
    """

    stages: int
    method: str
    cuts: tuple[str, ...]
    iteration_s: float
    speedup: float
    efficiency: float
    slowest_stage_s: float
    exposed_s: float
    sent_bytes: float
    boundaries: tuple[Boundary, ...]
    iteration_by_slack_s: dict[int, float]
    data_parallel: DataParallel
    here: Here
    stage_plans: tuple[StagePlan, ...]
    advice: tuple[str, ...]
    command: str = ""
    dial: tuple[DialRow, ...] = ()
    ties: tuple[TiedParameter, ...] = ()
    tie_bytes: int = 0


def forecast(
    stages: Sequence[LayerCost],
    whole: LayerCost,
    method: Method,
    link: Link | None,
    *,
    speeds: Sequence[float] | None = None,
    host: Host | None = None,
    ties: Sequence[TiedParameter] = (),
    slacks: Sequence[int] = (0, 1, 2),
) -> Forecast:
    """Predict an iteration of a pipeline.

    Args:
        stages: what each stage costs on the device that was measured, M micro-batches together.
        whole: what the whole network costs on that device, with the batch at once.
        method: gives the schedule, and what is kept, sent and recomputed.
        link: between neighbours; None costs nothing.
        speeds: of each stage's device, relative to the measured one; by default all 1.
        host: this machine; by default it has a core for each stage.
        ties: parameters that stages share. Owner and borrower have a link like neighbours.
        slacks: to compare, if the method has the option.
    """
    num_stages, schedule = len(stages), method.schedule
    speeds = [1.0] * num_stages if speeds is None else speeds
    plans = _stage_plans(stages, method, speeds, ties)
    parts = schedule.micro_batches
    boundaries, lent = _boundaries(stages, method, ties)
    tie_bytes = parts * sum(map(sum, _lent(ties).values()))
    apart = parts * sum(map(sum, lent.values()))
    time = partial(iteration_s, plans, boundaries=boundaries, link=link, ties=lent)
    slacks = () if schedule.slack is None else slacks
    own_s = time(schedule)
    slack_s = {slack: time(locked(slack, parts)) for slack in slacks}
    slowest_s = max(plan.total_s for plan in plans)
    rival = data_parallel(whole, num_stages, link, slowest_speed=min(speeds))
    return Forecast(
        stages=num_stages,
        method=repr(method),
        cuts=tuple(stage.name for stage in stages[1:]),
        iteration_s=own_s,
        speedup=whole.total_s / own_s,
        efficiency=whole.total_s / own_s / sum(speeds),
        slowest_stage_s=slowest_s,
        exposed_s=max(own_s - slowest_s, 0.0),
        sent_bytes=apart + sum(each.activation_bytes + each.gradient_bytes for each in boundaries),
        ties=tuple(ties),
        tie_bytes=tie_bytes,
        boundaries=boundaries,
        iteration_by_slack_s=slack_s,
        data_parallel=rival,
        here=_here(plans, method, boundaries, lent, host or Host(cores=num_stages)),
        stage_plans=plans,
        advice=(
            *advice.on_link(slowest_s, boundaries, link),
            *advice.on_delay(method, num_stages),
            *advice.on_slack(own_s, slack_s, schedule, num_stages),
            *advice.on_rival(min([own_s, *slack_s.values()]), boundaries, rival),
        ),
    )


def dial_row(forecast: Forecast, micro_batches: int) -> DialRow:
    """Return what the dial shows of a forecast with M micro-batches."""
    return DialRow(
        micro_batches=micro_batches,
        iteration_s=forecast.iteration_s,
        speedup=forecast.speedup,
        delay=forecast.stage_plans[0].delay,
        memory_bytes=max(plan.memory.total_bytes for plan in forecast.stage_plans),
    )


def _stage_plans(
    stages: Sequence[LayerCost],
    method: Method,
    speeds: Sequence[float],
    ties: Sequence[TiedParameter],
) -> tuple[StagePlan, ...]:
    num_stages, schedule, found = len(stages), method.schedule, []
    for k, (cost, speed) in enumerate(zip(stages, speeds, strict=True)):
        lag = schedule.lag(k, num_stages)
        again_s = cost.forward_s if method.recompute and lag > 0 else 0.0
        found.append(
            StagePlan(
                stage=k,
                first_layer=cost.name,
                speed=speed,
                lag=lag,
                delay=schedule.delay(k, num_stages),
                forward_s=cost.forward_s / speed,
                backward_s=(cost.backward_s + again_s) / speed,
                update_s=cost.update_s / speed,
                share=0.0,
                memory=stage_memory(cost, method, k, num_stages, ties),
            )
        )
    total_s = sum(plan.total_s for plan in found) or 1.0
    return tuple(replace(plan, share=plan.total_s / total_s) for plan in found)


def _boundaries(
    stages: Sequence[LayerCost], method: Method, ties: Sequence[TiedParameter]
) -> tuple[tuple[Boundary, ...], dict[tuple[int, int], tuple[int, int]]]:
    """Return what crosses each boundary, and what shared parameters send elsewhere."""
    fraction = 1.0 if method.boundary_dtype is None else 0.5
    lent, parts = _lent(ties), method.schedule.micro_batches
    beside = [lent.pop((k, k + 1), (0, 0)) for k in range(len(stages) - 1)]
    boundaries = tuple(
        Boundary(
            activation_bytes=stage.output_bytes * fraction + values * parts,
            gradient_bytes=stage.gradient_bytes * fraction + gradients * parts,
        )
        for stage, (values, gradients) in zip(stages[:-1], beside, strict=True)
    )
    return boundaries, lent


def _lent(ties: Sequence[TiedParameter]) -> dict[tuple[int, int], tuple[int, int]]:
    """Add up the bytes of each owner and borrower: of values, and of gradients, a micro-batch."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for tie in ties:
        for borrower in tie.borrowers:
            values, gradients = found.get((tie.owner, borrower), (0, 0))
            back = tie.num_bytes if tie.trained else 0
            found[tie.owner, borrower] = values + tie.num_bytes, gradients + back
    return found


def _here(
    stages: Sequence[StagePlan],
    method: Method,
    boundaries: Sequence[Boundary],
    ties: Ties,
    host: Host,
) -> Here:
    together = any(stage.lag for stage in stages)
    slowed = [stage.slowed(host.slowdown if together else 1.0) for stage in stages]
    time = iteration_s(slowed, method.schedule, boundaries=boundaries, link=host.link, ties=ties)
    crowded = len(stages) * host.threads > host.cores
    if crowded:  # the cores cannot do more work than there is time
        time = max(
            time, sum(stage.total_s for stage in slowed) / max(host.cores // host.threads, 1)
        )
    return Here(iteration_s=time, cores=host.cores, crowded=crowded)
