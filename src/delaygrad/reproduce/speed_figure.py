"""The figure of a speed target: speed-up against K, and where an iteration's time goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delaygrad.reproduce.published import Published

# Okabe and Ito's colours, which colour-blind readers tell apart.
_ACTIVITIES = {
    "forward": "#0072B2",
    "backward": "#E69F00",
    "update": "#009E73",
    "send": "#000000",
    "wait": "#CCCCCC",
}
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = {"computing": "o", "sleeping": "s"}


def draw_speed(
    rows: Sequence[dict[str, Any]], published: Sequence[Published], title: str, path: Path
) -> None:
    """Draw measured, published and ideal speed-ups, and the time of each stage.

    Args:
        rows: of ``delaygrad.reproduce.speed.measure_speed``.
        published: to compare with.
        title: above the figure.
        path: of the figure.
    """
    from matplotlib.figure import Figure

    ran = [row for row in rows if "speedup" in row]
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    speed, times = figure.subplots(1, 2, width_ratios=(1, 1.4))
    _draw_speed_ups(speed, ran, published)
    _draw_stages(times, ran)
    figure.savefig(path, dpi=120)


def _draw_speed_ups(
    axes: Any, rows: Sequence[dict[str, Any]], published: Sequence[Published]
) -> None:
    groups = dict.fromkeys((row["workload"], row["how"], row["contestant"]) for row in rows)
    for (workload, how, contestant), colour in zip(groups, _COLOURS * 9, strict=False):
        own = [
            row
            for row in rows
            if (row["workload"], row["how"], row["contestant"]) == (workload, how, contestant)
        ]
        counts = [row["stages"] for row in own]
        middles = [row["speedup"]["median"] for row in own]
        spreads = [
            [m - row["speedup"]["quartiles"][0] for m, row in zip(middles, own, strict=True)],
            [row["speedup"]["quartiles"][1] - m for m, row in zip(middles, own, strict=True)],
        ]
        label = f"{workload}, {contestant}, {how} stages"
        axes.errorbar(
            counts, middles, spreads, label=label, color=colour, marker=_MARKERS[how], capsize=2
        )
        rule = [row["paper_rule"] for row in own]
        if None not in rule:
            axes.plot(
                counts, rule, color=colour, marker="_", linestyle="--", linewidth=0.8,
                label="the same stages by T_F + T_B / K",
            )  # fmt: skip
    quoted = [number for number in published if number.quantity == "speedup"]
    for who in dict.fromkeys(number.who for number in quoted):
        own_numbers = [number for number in quoted if number.who == who]
        counts = [number.stages for number in own_numbers]
        values = [number.value for number in own_numbers]
        axes.plot(counts, values, color="black", marker="x", linewidth=1, label=f"published: {who}")
    largest = max(
        (n for n in [*(r["stages"] for r in rows), *(n.stages for n in quoted)]), default=1
    )
    axes.plot([1, largest], [1, largest], color="0.6", linestyle=":", label="K")
    axes.set(
        xlabel="stages K", ylabel="throughput / BP in one process", xticks=range(1, largest + 1)
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _draw_stages(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Stack each stage's activities, as shares of its iteration."""
    place, labels, places = 0.0, [], []
    for row in rows:
        first = place
        for stage in row["stage_seconds"]:
            bottom = 0.0
            for activity, colour in _ACTIVITIES.items():
                share = 100 * stage[activity] / row["iteration_s"]
                axes.bar(place, share, bottom=bottom, color=colour, width=0.85)
                bottom += share
            place += 1
        if row["stage_seconds"]:
            places.append((first + place - 1) / 2)
            labels.append(f"{row['workload']}\n{row['how']}\nK = {row['stages']}")
        place += 0.7
    axes.set_xticks(places, labels, fontsize=7)
    axes.set(ylabel="share of the iteration (%)", title="what each stage does")
    for activity, colour in _ACTIVITIES.items():
        axes.bar(0, 0, color=colour, label=activity)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
