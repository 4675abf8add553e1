"""Results as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from delaygrad.cli.trace import print_trace
from delaygrad.records import shown_activities

_ACTIVITIES = shown_activities(averaged=False)


def print_summary(summary: dict[str, Any]) -> None:
    """Print a run's result, what ``summary.json`` holds, and how each stage spent its time."""
    console = Console(highlight=False)
    result = Table(title="result", show_header=False, title_justify="left")
    result.add_column()
    result.add_column(justify="right")
    count = summary["test_predictions"]
    result.add_row(f"test accuracy ({count:,} predictions)", f"{summary['test_accuracy']:.2%}")
    result.add_row("test loss", f"{summary['test_loss']:.4f}")
    if summary["train_loss"] is not None:
        result.add_row("train loss (last report)", f"{summary['train_loss']:.4f}")
    result.add_row("iterations", f"{summary['iterations']:,}")
    result.add_row("samples/s", f"{summary['samples_per_s']:,.0f}")
    result.add_row("training time", f"{summary['train_s']:.1f} s")
    console.print(result)
    stages = Table(title="stages (share of training time)", title_justify="left")
    for heading in ("stage", "first layer", "delay", *_ACTIVITIES):
        stages.add_column(heading, justify="left" if heading == "first layer" else "right")
    first_layers = ["(input)", *summary["cuts"]]
    for row, layer in zip(summary["stages"], first_layers, strict=True):
        shares = [f"{row[f'{name}_share']:.0%}" for name in _ACTIVITIES]
        stages.add_row(str(row["stage"]), layer, str(row["delay"]), *shares)
    console.print(stages)
    if "trace" in summary:
        print_trace(summary["trace"], console)
    console.print(f"parameters  sha256 {summary['parameters_sha256']}", soft_wrap=True)
    console.print(f"run folder  {summary['run_dir']}", soft_wrap=True)
