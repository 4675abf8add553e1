"""The figure of a memory target: memory against K, measured and by formula."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_memory(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw the total of all stages against K, and each stage's own.

    Args:
        rows: of ``delaygrad.reproduce.memory.measure_memory``.
        title: above the figure.
        path: of the figure.
    """
    from matplotlib.figure import Figure

    ran = [row for row in rows if "measured_bytes" in row]
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    total, stages = figure.subplots(1, 2)
    groups = dict.fromkeys(map(_line_of, ran))
    for line, colour in zip(groups, _COLOURS * 9, strict=False):
        own = [row for row in ran if _line_of(row) == line]
        counts = [row["num_stages"] for row in own]
        total.plot(
            counts,
            [_mib(row["measured_bytes"]) for row in own],
            marker="o",
            color=colour,
            label=line,
        )
        total.plot(
            counts, [_mib(row["predicted_bytes"]) for row in own], marker="_", linestyle="--",
            linewidth=0.8, color=colour, label="formula",
        )  # fmt: skip
        _draw_stages(stages, own, colour)
    counts = sorted({row["num_stages"] for row in ran})
    total.set(xlabel="stages K", ylabel="MiB, all stages together", xticks=counts)
    stages.set(xlabel="stage", ylabel="MiB of a stage", xticks=range(max(counts, default=1)))
    stages.margins(x=0.12)
    for axes in (total, stages):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    if ran:
        total.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def _draw_stages(axes: Any, rows: Sequence[dict[str, Any]], colour: str) -> None:
    for row in rows:
        own = [stage["measured_bytes"] for stage in row["stages"]]
        if None not in own:
            values = [_mib(n) for n in own]
            axes.plot(range(len(own)), values, marker="o", color=colour, alpha=0.7)
            axes.annotate(
                f"K = {len(own)}", (0, values[0]), (-6, 0), textcoords="offset points", fontsize=7,
                ha="right", va="center",
            )  # fmt: skip


def _line_of(row: dict[str, Any]) -> str:
    method = " ".join(filter(None, (row["method"].upper(), row["variant"])))
    return f"{row['model']}, batch {row['batch_size']}, {method}, {row['device']}"


def _mib(num_bytes: int) -> float:
    return num_bytes / 2**20
