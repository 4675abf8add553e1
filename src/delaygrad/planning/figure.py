"""A plan as a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from delaygrad.errors import ConfigError
from delaygrad.planning.forecast import Forecast, StagePlan
from delaygrad.planning.planner import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SECONDS = {"forward_s": "forward", "backward_s": "backward", "update_s": "update"}
_MEMORY = {
    "graph_bytes": "graphs",
    "boundary_bytes": "boundaries",
    "message_bytes": "messages",
    "working_bytes": "working",
    "stale_parameter_bytes": "stale parameters",
    "parameter_bytes": "parameters",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
}
# Okabe and Ito's palette, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#D55E00", "#999999", "#F0E442")


def draw_plan(plan: Plan, path: Path, title: str = "") -> Path:
    """Write the figure of a plan.

    Args:
        plan: what to draw.
        path: where to; its suffix decides the format.
        title: above all.

    Returns:
        The path.

    Raises:
        ConfigError: it cannot be written, or the format is unknown.
    """
    try:
        plan_figure(plan, title).savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the figure ({path}): {error}") from error
    return path


def plan_figure(plan: Plan, title: str) -> Figure:
    """Draw speed-up against K, and the time and memory of each stage."""
    from matplotlib.figure import Figure

    bars = sum(forecast.stages + 1 for forecast in plan.forecasts)
    figure = Figure(figsize=(10 + 0.25 * bars, 4.8), layout="constrained")
    figure.suptitle(title)
    speed, times, memory = figure.subplots(1, 3, width_ratios=[4, 3 + 0.12 * bars, 3 + 0.12 * bars])
    _draw_speed(speed, plan)
    _draw_stages(times, plan.forecasts, _SECONDS, lambda stage: stage, 1e3)
    times.set(title="time of each stage", ylabel="ms per iteration")
    _draw_stages(memory, plan.forecasts, _MEMORY, lambda stage: stage.memory, 2**-20)
    memory.set(title="memory of each stage", ylabel="MiB")
    return figure


def _draw_speed(axes: Axes, plan: Plan) -> None:
    rows = sorted(plan.forecasts, key=lambda forecast: forecast.stages)
    counts = [row.stages for row in rows]
    rivals = [row.data_parallel for row in rows]
    worst = [plan.whole.total_s / rival.worst_s for rival in rivals]
    best = [plan.whole.total_s / rival.best_s for rival in rivals]
    axes.plot(counts, counts, color="0.6", linestyle=":", label="K (ideal)")
    axes.plot(counts, [row.speedup for row in rows], marker="o", color="C0", label="pipeline")
    axes.vlines(counts, worst, best, color="C1", linewidth=5, alpha=0.6, label="data parallel")
    axes.set(title="predicted speed-up", xlabel="devices, K", xticks=counts)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    _place_legend(axes)


def _draw_stages(
    axes: Axes,
    forecasts: Sequence[Forecast],
    labels: dict[str, str],
    value_of: Callable[[StagePlan], object],
    scale: float,
) -> None:
    positions, stages = [], []
    place = 0.0
    for forecast in forecasts:
        middle = place + (forecast.stages - 1) / 2
        axes.annotate(
            f"K = {forecast.stages}", (middle, 0), xycoords=("data", "axes fraction"),
            xytext=(0, -28), textcoords="offset points", ha="center", fontsize="small",
        )  # fmt: skip
        for stage in forecast.stage_plans:
            positions.append(place)
            stages.append(stage)
            place += 1
        place += 1  # a gap between one K and the next
    bottom = [0.0] * len(stages)
    for (name, label), colour in zip(labels.items(), _COLOURS, strict=False):
        heights = [scale * getattr(value_of(stage), name) for stage in stages]
        axes.bar(positions, heights, bottom=bottom, color=colour, label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    numbers = [str(k) for forecast in forecasts for k in range(forecast.stages)]
    axes.set_xticks(positions, numbers, fontsize="small")
    axes.set_xlabel("stage", labelpad=16)
    _place_legend(axes)


def _place_legend(axes: Axes) -> None:
    """Put the legend below the axes, where it covers nothing."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=4, fontsize="small", frameon=False
    )
