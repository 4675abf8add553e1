"""A plan as tables and sentences, for a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from delaygrad.planning.advice import milliseconds
from delaygrad.planning.forecast import Forecast

if TYPE_CHECKING:
    from delaygrad.planning.planner import Plan


def tables(plan: Plan) -> Iterator[RenderableType]:
    """Yield what was measured, a table of all K, and for each K its stages and what to do."""
    whole, link = plan.whole, plan.link
    yield Text(
        f"one device  {milliseconds(whole.total_s)} an iteration (forward "
        f"{milliseconds(whole.forward_s)}, backward {milliseconds(whole.backward_s)}, update "
        f"{milliseconds(whole.update_s)}), parameters {_mebibytes(whole.parameter_bytes)} MiB, "
        f"activations {_mebibytes(whole.saved_bytes)} MiB"
    )
    if link is not None:
        megabits = f"{8 * link.bandwidth_bytes_per_s / 1e6:,.0f} Mbit/s"
        origin = "measured on loopback" if plan.link_measured else "as given"
        yield Text(f"link        {megabits}, {milliseconds(link.latency_s)} one way ({origin})")
    elif any(forecast.boundaries for forecast in plan.forecasts):
        yield Text("link        none: messages cost nothing")
    if plan.slowdown is not None:
        yield Text(
            f"this host   {plan.processes} processes at once compute "
            f"{100 * (plan.slowdown - 1):.1f} % slower than one alone"
        )
    yield _overview(plan)
    for forecast in plan.forecasts:
        yield _stages(forecast)
        for tie in forecast.ties:
            yield Text(
                f"  shared    {tie.path} ({_mebibytes(tie.num_bytes)} MiB) of stage {tie.owner} "
                f"with stage {', '.join(map(str, tie.borrowers))}"
            )
        if forecast.ties:
            yield Text(
                f"  shared parameters send {_mebibytes(forecast.tie_bytes)} of the "
                f"{_mebibytes(forecast.sent_bytes)} MiB per iteration"
            )
        if len(forecast.dial) > 1:
            yield _dial(forecast)
        for sentence in forecast.advice:
            yield Text(f"  - {sentence}")
        if forecast.here.crowded:
            yield Text(
                f"  - this host has too few cores ({forecast.here.cores}) for {forecast.stages} "
                f"processes (threads of each: {plan.threads}); here an iteration would take "
                f"{milliseconds(forecast.here.iteration_s)}"
            )
        yield Text(f"  {forecast.command}", no_wrap=True, overflow="ignore")


def _overview(plan: Plan) -> Table:
    table = _table(
        "predicted, on K devices like this one (times in ms, sizes in MiB)",
        "K", "delay", "iteration", "exposed", "speed-up", "efficiency", "sent", "all here",
        "data parallel",
    )  # fmt: skip
    for each in plan.forecasts:
        rival = each.data_parallel
        table.add_row(
            str(each.stages),
            str(each.stage_plans[0].delay),
            _milliseconds(each.iteration_s),
            _milliseconds(each.exposed_s),
            f"{each.speedup:.2f}",
            f"{each.efficiency:.0%}",
            _mebibytes(each.sent_bytes),
            _milliseconds(each.here.iteration_s) + ("*" if each.here.crowded else ""),
            f"{_milliseconds(rival.best_s)} to {_milliseconds(rival.worst_s)}",
        )
    table.caption = (
        "delay: updates, of the first stage. exposed: the slowest stage waits for neighbours and "
        "link. sent: per iteration, all boundaries. all here: all processes on this host (* more "
        "than its cores). data parallel: from an all-reduce that hides behind the backward as far "
        "as possible, to one that does not hide."
    )
    table.caption_justify = "left"
    return table


def _stages(forecast: Forecast) -> Table:
    table = _table(
        f"{forecast.stages} stages, {forecast.method} (times in ms, sizes in MiB)",
        "stage", "first layer", "delay", "forward", "backward", "update", "share", "memory",
        "waiting",
    )  # fmt: skip
    for stage in forecast.stage_plans:
        memory = stage.memory
        waiting = (
            memory.graph_bytes + memory.boundary_bytes + memory.message_bytes
            + memory.stale_parameter_bytes
        )  # fmt: skip
        table.add_row(
            str(stage.stage),
            stage.first_layer,
            str(stage.delay),
            *(_milliseconds(seconds) for seconds in stage.times().values()),
            f"{stage.share:.1%}",
            _mebibytes(memory.total_bytes),
            _mebibytes(waiting),
        )
    return table


def _dial(forecast: Forecast) -> Table:
    table = _table(
        f"{forecast.stages} stages: the dial (times in ms, sizes in MiB)",
        "micro-batches", "delay", "iteration", "speed-up", "memory of a stage",
    )  # fmt: skip
    for row in forecast.dial:
        table.add_row(
            str(row.micro_batches),
            str(row.delay),
            _milliseconds(row.iteration_s),
            f"{row.speedup:.2f}",
            _mebibytes(row.memory_bytes),
        )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        justify: Literal["left", "right"] = "left" if heading == "first layer" else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    return table


def _milliseconds(seconds: float) -> str:
    return milliseconds(seconds).removesuffix(" ms") if seconds > 1e-9 else "0"  # less is rounding


def _mebibytes(num_bytes: float) -> str:
    value = num_bytes / 2**20
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
