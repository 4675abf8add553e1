"""``delaygrad plan``: predict before you rent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from delaygrad.report.plan_figure import draw_plan
from delaygrad.training.plan_config import PlanConfig
from delaygrad.training.planning import make_plan


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predict, from a few seconds of measurement, how a network will train as K stages."""

    what: tyro.conf.OmitArgPrefixes[PlanConfig]
    figure: Path | None = None
    """Draw the plan into this file (PNG, PDF or SVG)."""
    json: bool = False
    """Print the plan as JSON instead of tables."""
    quiet: bool = False
    """Show no progress."""

    def __call__(self) -> None:
        plan = make_plan(self.what, quiet=self.quiet)
        if self.figure is not None:
            plan["figure"] = str(draw_plan(plan, self.figure))
        if self.json:
            print(json.dumps(plan, indent=2))
        else:
            print_plan(plan)


def print_plan(plan: dict[str, Any]) -> None:
    """Print a plan.

    Args:
        plan: from ``make_plan``.
    """
    console = Console(highlight=False)
    one = plan["one_device"]
    link, beside = plan["link"], plan["side_by_side"]
    console.print(
        f"one device  {_ms(one['iteration_s'])} an iteration (forward {_ms(one['forward_s'])}, "
        f"backward {_ms(one['backward_s'])}, update {_ms(one['update_s'])}), "
        f"parameters {_size(one['parameter_bytes'])}, activations {_size(one['saved_bytes'])}"
    )
    if link is not None:
        origin = "measured on loopback" if link["measured"] else "as given"
        megabits = 8 * link["bandwidth_bytes_per_s"] / 1e6
        latency = _ms(link["latency_s"])
        console.print(f"link        {megabits:,.0f} Mbit/s, {latency} one way ({origin})")
    if beside["slowdown"] is not None:
        console.print(
            f"this host   {beside['processes']} processes at once compute "
            f"{100 * (beside['slowdown'] - 1):.1f} % slower than one alone"
        )
    console.print(_overview(plan))
    for one_plan in plan["plans"]:
        console.print(_stages(one_plan))
        for sentence in _remarks(one_plan, plan):
            console.print(f"  - {sentence}")
        console.print(f"  {one_plan['command']}", soft_wrap=True)
    if "figure" in plan:
        console.print(f"figure      {plan['figure']}", soft_wrap=True)


def _overview(plan: dict[str, Any]) -> Table:
    table = _table("predicted, on K devices like this one (times in ms, sizes in MiB)")
    for heading in (
        "K", "iteration", "exposed", "speed-up", "efficiency", "sent", "all here", "data parallel",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in plan["plans"]:
        rival = row["data_parallel"]
        table.add_row(
            str(row["stages"]),
            _number(1e3 * row["iteration_s"]),
            _number(1e3 * row["exposed_s"]),
            f"{row['speedup']:.2f}",
            f"{row['efficiency']:.0%}",
            _number(row["sent_bytes"] / 2**20),
            _number(1e3 * row["here"]["iteration_s"]) + ("*" if row["here"]["crowded"] else ""),
            f"{_number(1e3 * rival['best_s'])} to {_number(1e3 * rival['worst_s'])}",
        )
    table.caption = (
        "exposed: waiting for neighbours and link. sent: per iteration, all boundaries. all here: "
        "all processes on this host (* more than its cores). data parallel: all-reduce hidden "
        "behind the backward as far as it goes, to not at all."
    )
    table.caption_justify = "left"
    return table


def _stages(plan: dict[str, Any]) -> Table:
    table = _table(f"{plan['stages']} stages, {plan['method']} (times in ms, sizes in MiB)")
    for heading in (
        "stage", "first layer", "delay", "forward", "backward", "update", "share", "memory",
        "waiting",
    ):  # fmt: skip
        justify: Literal["left", "right"] = "left" if heading == "first layer" else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for row in plan["stage_plans"]:
        memory = row["memory"]
        waiting = (
            "graph_bytes", "boundary_bytes", "message_bytes", "stale_parameter_bytes",
        )  # fmt: skip
        table.add_row(
            str(row["stage"]),
            row["first_layer"],
            str(row["delay"]),
            *(_number(1e3 * row[f"{name}_s"]) for name in ("forward", "backward", "update")),
            f"{row['share']:.1%}",
            _number(memory["total_bytes"] / 2**20),
            _number(sum(memory[name] for name in waiting) / 2**20),
        )
    return table


def _remarks(one_plan: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    here, remarks = one_plan["here"], list(one_plan["advice"])
    if here["crowded"]:
        threads = plan["config"]["threads"]
        remarks.append(
            f"this host's {here['cores']} cores are too few for {one_plan['stages']} processes "
            f"(threads of each: {threads}); here an iteration would take {_ms(here['iteration_s'])}"
        )
    return remarks


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ms(seconds: float) -> str:
    return f"{_number(1e3 * seconds)} ms"


def _size(num_bytes: float) -> str:
    return f"{_number(num_bytes / 2**20)} MiB"
