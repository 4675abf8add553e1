"""``plan``: measure a network and this machine, cut, predict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor, nn

from delaygrad.boundary import Tree, flatten
from delaygrad.errors import ConfigError, lacks
from delaygrad.launch import torch_threads, usable_cores
from delaygrad.methods import DDG, Method, method_or_ddg
from delaygrad.optimizers import MakeOptimizer
from delaygrad.partition import LayerCost
from delaygrad.partition.costs import join, stages_of, with_seconds, without_borrowed
from delaygrad.partition.measured_cuts import MeasuredCuts, measured_cuts
from delaygrad.partition.measurement import Measurement, measuring
from delaygrad.partition.split import Cuttable, cuttable, separable_groups
from delaygrad.planning.dial import PartCosts, counts_of, part_costs, scaled, with_micro_batches
from delaygrad.planning.forecast import Forecast, Host, dial_row, forecast
from delaygrad.planning.link import Link
from delaygrad.planning.stage_memory import fits_within
from delaygrad.runtime.machine import Machine, measure_machine

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was measured, and how the network will train as K stages, for each K; print it.

    Attributes:
        whole: what the network costs on one device.
        layers: what each layer costs, timed alone.
        link: between two devices; None: messages cost nothing.
        link_measured: whether the link is this machine's loopback, measured.
        slowdown: time of processes that compute at once / the time of one alone; None: not
            measured.
        processes: how many were measured at once.
        threads: of each process.
        forecasts: one for each K.
        stages: what the stages cost, for each K, with the batch at once.
        parts: what splitting the batch costs, for each K.
    """

    whole: LayerCost
    layers: tuple[LayerCost, ...]
    link: Link | None
    link_measured: bool
    slowdown: float | None
    processes: int
    threads: int
    forecasts: tuple[Forecast, ...]
    stages: tuple[tuple[LayerCost, ...], ...]
    parts: tuple[PartCosts, ...]

    def with_commands(self, command: Callable[[Forecast], str]) -> Plan:
        """Return the same plan with other commands that cut the network as planned."""
        forecasts = tuple(replace(each, command=command(each)) for each in self.forecasts)
        return replace(self, forecasts=forecasts)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; times in seconds (``_s``), sizes in bytes (``_bytes``)."""
        link = vars(self.link) | {"measured": self.link_measured} if self.link else None
        return {
            "link": link,
            "side_by_side": {"slowdown": self.slowdown, "processes": self.processes},
            "one_device": {"iteration_s": self.whole.total_s, **self.whole.to_json()},
            "layers": [cost.to_json() for cost in self.layers],
            "plans": [_plain(each) for each in self.forecasts],
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from delaygrad.planning.tables import tables

        yield from tables(self)

    def __str__(self) -> str:
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            raise lacks("rich", "a printed plan") from None
        written = StringIO()
        Console(file=written, width=100, highlight=False).print(self, crop=False)
        return written.getvalue()


def plan(
    model: nn.Module,
    sample_inputs: Tree,
    *,
    num_stages: int | Sequence[int] = 2,
    method: Method = DDG(),  # noqa: B008
    loss: Callable[[Any], Tensor] | None = None,
    make_optimizer: MakeOptimizer | None = None,
    link: Link | Literal["loopback"] | None = None,
    speeds: Sequence[float] | None = None,
    memory_cap_bytes: float = math.inf,
    threads: int = 1,
    side_by_side: bool = False,
    say: Callable[[str], None] | None = None,
) -> Plan:
    """Measure a network on one batch, and predict how it will train as K stages.

    Nothing is trained, and the model stays as it is. It takes some seconds, see `split`.

    Args:
        model: as for `split`, on the CPU.
        sample_inputs: one batch, as for `split`.
        num_stages: K, one or several.
        method: the method to plan for; methods that synthesize error gradients are refused.
        loss: computes the loss from the model's outputs; its time counts with the last layer.
        make_optimizer: ``make_optimizer(params)``; its update and its state count too.
        link: between two devices; "loopback" measures that of this machine, in two processes of
            its own; None costs nothing.
        speeds: of each stage's device, relative to this one; for one K only; by default all 1.
        memory_cap_bytes: memory of a device; the cuts respect it.
        threads: CPU threads of each process, and of the measurement.
        side_by_side: also measure the slowdown of stages that compute at once on this machine,
            in several processes. As for "loopback", a script then needs the usual
            ``if __name__ == "__main__":``.
        say: called with a message before each slow step.
    Returns:
        plan: ``print(plan)`` shows tables and advice (needs rich), ``plan.to_json()`` returns all
            numbers.
    Raises:
        ConfigError: the method or the speeds do not fit.
        PartitionError: the network, the inputs or the number of stages do not fit, or no cuts keep
            to the memory cap.
        WorkerError: a process that measured this machine failed.
    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> found = plan(net, torch.ones(16, 8), num_stages=[1, 3])
        >>> [each.cuts for each in found.forecasts]
        [(), ('1', '2')]
    """
    method_or_ddg(method)
    counts = [num_stages] if isinstance(num_stages, int) else list(dict.fromkeys(num_stages))
    _check(method, counts, speeds)
    say = say or (lambda text: None)
    batch_size = len(flatten(sample_inputs)[0][0])
    methods = {k: method.for_stages(k, batch_size) for k in counts}
    dials = {k: counts_of(k, methods[k].schedule.micro_batches) for k in counts}
    # All that can be refused, before anything is measured for long.
    network = cuttable(model, sample_inputs, before_loss=loss is not None)
    groups = {k: separable_groups(network, k) for k in counts}

    def cut(measurement: Measurement, costs: Sequence[LayerCost], k: int) -> MeasuredCuts:
        say(f"timing {k} stages")
        method, fits = methods[k], None
        if memory_cap_bytes < math.inf:
            fits = fits_within(stages_of(costs, groups[k][1:]), method, k, memory_cap_bytes)
        again = [method.recompute and method.schedule.lag(stage, k) > 0 for stage in range(k)]
        return measured_cuts(
            measurement, costs, k, groups=groups[k], speeds=speeds, again=again, fits=fits
        )

    cores = usable_cores()
    at_once = min(max(counts), max(cores // threads, 1))  # with more, they would share cores
    work: Work = []
    with (
        torch_threads(threads),
        measuring(
            network.chain, sample_inputs, make_optimizer=make_optimizer, loss=loss
        ) as measurement,
    ):
        say(f"timing {len(network.layers)} layers")
        costs = _layer_costs(measurement, network)
        (whole,) = with_seconds([join(costs)], measurement.stages([]))
        found = {k: cut(measurement, costs, k) for k in counts}
        say("timing micro-batches")
        parts = {k: part_costs(measurement, dials[k], found[k].cuts) for k in counts}
        if side_by_side and at_once > 1:
            work = _work(measurement, network, found.get(at_once), costs, at_once)
    machine = Machine()
    if max(counts) > 1 and (work or link == "loopback"):
        say(f"timing {max(len(work), 2)} processes side by side")
        machine = measure_machine(work, threads=threads, link=link == "loopback")
    loopback = _loopback(machine)
    host = Host(cores=cores, threads=threads, slowdown=machine.slowdown or 1.0, link=loopback)
    used = loopback if link == "loopback" else link

    def predicted(k: int) -> Forecast:
        own, ties = methods[k], network.shared(found[k].cuts)

        def made_of(method: Method, **slacks: Any) -> Forecast:
            stages = scaled(found[k].stages, parts[k], method.schedule.micro_batches)
            return forecast(
                stages, whole, method, used, speeds=speeds, host=host, ties=ties, **slacks
            )

        counts = (m for m in dials[k] if m in parts[k] and own.schedule.lag(0, k))
        dial = (dial_row(made_of(with_micro_batches(own, m), slacks=()), m) for m in counts)
        return replace(made_of(own), dial=tuple(dial))

    planned = Plan(
        whole=whole,
        layers=tuple(costs),
        link=used,
        link_measured=link == "loopback",
        slowdown=machine.slowdown,
        processes=machine.processes,
        threads=threads,
        forecasts=tuple(map(predicted, counts)),
        stages=tuple(tuple(each.stages) for each in found.values()),
        parts=tuple(parts.values()),
    )
    sample = "sample_inputs=inputs, " if network.captured else ""
    return planned.with_commands(
        lambda each: f"dg.split(model, {each.stages}, {sample}cuts={list(each.cuts)})"
    )


Work: TypeAlias = list[tuple[nn.Module, Tree]]
"""Stages and their inputs, to be timed at once."""


def _layer_costs(measurement: Measurement, network: Cuttable) -> list[LayerCost]:
    """Measure every layer; what it borrows from another one is not its own."""
    layers, shared = network.layers, network.shared(range(1, len(network.layers)))
    return [
        without_borrowed(
            replace(cost, name=layer.name), [tie for tie in shared if index in tie.borrowers]
        )
        for index, (cost, layer) in enumerate(zip(measurement.layers(), layers, strict=True))
    ]


def _work(
    measurement: Measurement,
    network: Cuttable,
    known: MeasuredCuts | None,
    costs: Sequence[LayerCost],
    num_stages: int,
) -> Work:
    groups = separable_groups(network, num_stages)
    cuts = (known or measured_cuts(measurement, costs, num_stages, groups=groups)).cuts
    # Of the chain: stages that tie a parameter would take it as one more input.
    pieces = cuttable(network.chain, None).build(cuts)
    return list(zip(pieces, measurement.stage_inputs(cuts), strict=True))


def _loopback(machine: Machine) -> Link | None:
    if machine.latency_s is None or machine.bandwidth_bytes_per_s is None:
        return None
    return Link(bandwidth_bytes_per_s=machine.bandwidth_bytes_per_s, latency_s=machine.latency_s)


def _check(method: Method, counts: list[int], speeds: Sequence[float] | None) -> None:
    if method.error_gradient.is_local:
        raise ConfigError(
            f"the cost of synthesizers is not measured (method: {method.name}); plan another method"
        )
    if min(counts, default=0) < 1:
        raise ConfigError(f"stages must be at least 1 (stages: {counts})")
    if speeds is None:
        return
    if counts != [len(speeds)]:
        raise ConfigError(
            f"speeds give each stage of one K a number (speeds: {list(speeds)}, stages: {counts})"
        )
    if not all(0 < speed < math.inf for speed in speeds):
        raise ConfigError(f"speeds must be positive and finite (speeds: {list(speeds)})")


def _plain(forecast: Forecast) -> dict[str, Any]:
    found = asdict(forecast)
    for row, stage in zip(found["stage_plans"], forecast.stage_plans, strict=True):
        row["memory"]["total_bytes"] = stage.memory.total_bytes
    return found
