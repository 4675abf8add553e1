"""``delaygrad trace``: draw a recorded timeline again, and say what it shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from delaygrad.records import measure_trace, read_trace, shown_activities
from delaygrad.results import draw_trace


@dataclass(frozen=True, kw_only=True)
class TraceRun:
    """Draw the timeline that a run has recorded (train --trace N), and say where time went."""

    run_dir: tyro.conf.Positional[Path]
    """The run's folder."""
    output: Path | None = None
    """Folder for trace.json (for https://ui.perfetto.dev) and trace.png; by default the run's."""
    json: bool = False
    """Print the measures as JSON instead of a table."""

    def __call__(self) -> None:
        measures = measure_trace(read_trace(self.run_dir))
        figure = draw_trace(self.run_dir, self.output or self.run_dir)
        if self.json:
            print(json.dumps({**measures, "timeline": str(figure)}, indent=2))
            return
        console = Console(highlight=False)
        print_trace(measures, console)
        console.print(f"timeline    {figure.with_suffix('.json')}, {figure.name}", soft_wrap=True)


def print_trace(measures: dict[str, Any], console: Console) -> None:
    """Print what ``measure_trace`` returned."""
    steady, recorded = measures["steady_iterations"], measures["recorded_iterations"]
    if not steady:
        console.print(
            f"timeline: none of the {recorded} recorded iterations is of a steady state; record "
            "more of them, or evaluate and checkpoint less often"
        )
        return
    averaged = any(row.get("average_s") for row in measures["stages"])
    names = (*shown_activities(averaged=averaged), "other")
    table = Table(title=f"timeline (mean of {steady} iterations, in ms)", title_justify="left")
    for heading in ("stage", *names, "idle"):
        table.add_column(heading, justify="right")
    for row in measures["stages"]:
        idle = "-" if row["idle_share"] is None else f"{row['idle_share']:.1%}"
        table.add_row(str(row["stage"]), *(_ms(row[f"{name}_s"]) for name in names), idle)
    console.print(table)
    measured, predicted = measures["iteration_s"], measures["predicted_iteration_s"]
    shared = 1 < measures["num_processes"] < len(measures["stages"])
    console.print(
        f"iteration   measured {_ms(measured)} ms, predicted {_ms(predicted)} ms: forward + "
        f"backward + update of {'the process of ' * shared}stage {measures['bottleneck_stage']}, "
        "the slowest",
        soft_wrap=True,
    )
    observed = [_updates(row["staleness_max"]) for row in measures["stages"]]
    prescribed = [_updates(row["delay"]) for row in measures["stages"]]
    console.print(
        f"staleness   at most {', '.join(observed)} updates; prescribed: {', '.join(prescribed)}",
        soft_wrap=True,
    )
    if measures["num_processes"] == 1 < len(measures["stages"]):
        console.print(
            "idle        not measured: the stages took turns in one process; the prediction is for "
            "a process each",
            soft_wrap=True,
        )
    for hop in measures["hops"]:
        way = f"{hop['content']}, stage {hop['sender']} to {hop['receiver']}"
        latency = "never waited for"
        if hop["hop_latency_s"] is not None:
            waited = hop["num_waited_for"]
            latency = f"{_ms(hop['hop_latency_s'])} ms (median of {waited} waited for)"
        console.print(f"hop         {way}: {latency}, {hop['num_bytes']:,} bytes", soft_wrap=True)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}"


def _updates(count: int | None) -> str:
    return "-" if count is None else str(count)
