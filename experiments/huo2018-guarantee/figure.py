"""The figure of this experiment, from ``results.json`` alone.

python experiments/huo2018-guarantee/figure.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARKERS = {"published": "s", "blockwise": "D", "virtual": "o", "variance": "^"}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the rates of SGD and Adam, and how far below each bound the runs are."""
    figure = Figure(figsize=(11, 8.2), layout="constrained")
    panels = figure.subplots(2, 2)
    series = report["rates"]
    for axes, optimizer, batches, title in (
        (panels[0, 0], "sgd", "sampled", "DDG-SGD, one sample per batch, step ~ 1/sqrt(T)"),
        (panels[0, 1], "sgd", "full", "DDG-SGD, full batches, step ~ 1/sqrt(T)"),
        (panels[1, 0], "adam", "sampled", "DDG-Adam, lr ~ 1/sqrt(T): outside the theory"),
    ):
        chosen = [s for s in series if (s["optimizer"], s["batches"]) == (optimizer, batches)]
        draw_rates(axes, chosen)
        axes.set_title(title, fontsize=10)
    draw_ratios(panels[1, 1], report["fixed"])
    figure.savefig(path, dpi=110)


def draw_rates(axes: Axes, series: list[dict[str, Any]]) -> None:
    for index, one in enumerate(series):
        iterations = [point["iterations"] for point in one["points"]]
        measured = [point["measured"]["mean"] for point in one["points"]]
        label = f"K = {one['stages']}: slope {one['slope']:.2f}"
        axes.plot(iterations, measured, marker="o", color=f"C{index}", label=label)
        if one["covered"]:
            bounds = [point["bound"]["virtual"] for point in one["points"]]
            axes.plot(iterations, bounds, linestyle="--", color=f"C{index}", linewidth=1)
    first = series[0]["points"]
    reference = [
        first[0]["measured"]["mean"] / 2 * (point["iterations"] / first[0]["iterations"]) ** -0.5
        for point in first
    ]
    axes.plot(
        [p["iterations"] for p in first], reference, color="grey", linestyle=":", label="T^(-1/2)"
    )
    if series[0]["covered"]:
        axes.plot([], [], color="grey", linestyle="--", label="bounds (virtual)")
        axes.axhline(1.0, color="black", linewidth=0.8, label="M: bounds above say nothing")
    axes.set(xscale="log", yscale="log", xlabel="iterations T")
    if series[0]["covered"]:
        axes.set_ylim(top=1e4)  # room for the legend
    axes.set_ylabel("average squared gradient norm")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2, loc="upper right")


def draw_ratios(axes: Axes, fixed: list[dict[str, Any]]) -> None:
    """Each bound at the step that suits it best; blockwise at that of published."""
    for name, rule, batches in (
        ("published", "published", "sampled"),
        ("blockwise", "published", "sampled"),
        ("virtual", "virtual", "sampled"),
        ("variance", "certified / 2", "full"),
    ):
        chosen = [f for f in fixed if (f["rule"], f["batches"]) == (rule, batches)]
        axes.plot(
            [f["stages"] for f in chosen],
            [f["ratio"][name]["max"] for f in chosen],
            marker=MARKERS[name],
            label=f"{name}: {batches} batches, step {rule}",
        )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="stages K", ylabel="measured / bound, worst run")
    stages = sorted({f["stages"] for f in fixed})
    axes.set_xticks(stages, [str(k) for k in stages], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_title("How loose the bounds are (fixed step)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    folder = Path(__file__).parent
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    draw(results, folder / "results.png")
