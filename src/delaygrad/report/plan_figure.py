"""A plan as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from delaygrad.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PARTS = (("forward_s", "forward"), ("backward_s", "backward"), ("update_s", "update"))
_MEMORY = (
    ("graph_bytes", "graphs"),
    ("boundary_bytes", "boundaries"),
    ("message_bytes", "messages"),
    ("working_bytes", "working"),
    ("stale_parameter_bytes", "stale parameters"),
    ("parameter_bytes", "parameters"),
    ("gradient_bytes", "gradients"),
    ("optimizer_bytes", "optimizer"),
)
# Okabe and Ito's palette, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#D55E00", "#999999", "#F0E442")


def draw_plan(plan: dict[str, Any], path: Path) -> Path:
    """Draw speed-up against K, and the time and memory of each stage.

    Args:
        plan: from ``training.planning.make_plan``.
        path: where to; its suffix decides the format.

    Returns:
        The path.

    Raises:
        ConfigError: it cannot be written, or the format is unknown.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    config = plan["config"]
    figure.suptitle(f"{config['model']}, batch {config['batch_size']}, {config['method']}")
    speed, times, memory = figure.subplots(1, 3)
    _draw_speed(speed, plan)
    _draw_stages(times, plan["plans"], _PARTS, 1e3, "")
    times.set(title="time of each stage", ylabel="ms per iteration")
    _draw_stages(memory, plan["plans"], _MEMORY, 2**-20, "memory")
    memory.set(title="memory of each stage", ylabel="MiB")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the figure ({path}): {error}") from error
    return path


def _draw_speed(axes: Axes, plan: dict[str, Any]) -> None:
    one_s = plan["one_device"]["iteration_s"]
    rows = sorted(plan["plans"], key=lambda row: int(row["stages"]))
    counts = [row["stages"] for row in rows]
    worst = [one_s / row["data_parallel"]["worst_s"] for row in rows]
    best = [one_s / row["data_parallel"]["best_s"] for row in rows]
    axes.plot(counts, counts, color="0.6", linestyle=":", label="K")
    axes.plot(counts, [row["speedup"] for row in rows], marker="o", color="C0", label="pipeline")
    axes.vlines(counts, worst, best, color="C1", linewidth=5, alpha=0.6, label="data parallel")
    axes.set(title="predicted speed-up", xlabel="devices", xticks=counts)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_stages(
    axes: Axes,
    plans: list[dict[str, Any]],
    parts: tuple[tuple[str, str], ...],
    scale: float,
    inside: str,
) -> None:
    positions, labels, rows = [], [], []
    place = 0.0
    for plan in plans:
        for stage in plan["stage_plans"]:
            positions.append(place)
            labels.append(str(stage["stage"]))
            rows.append(stage[inside] if inside else stage)
            place += 1
        place += 1  # a gap between one K and the next
    bottom = [0.0] * len(rows)
    for (key, label), colour in zip(parts, _COLOURS, strict=False):
        heights = [scale * row[key] for row in rows]
        axes.bar(positions, heights, bottom=bottom, color=colour, label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(positions, labels, fontsize="small")
    axes.set_xlabel("stage, K = " + ", ".join(str(plan["stages"]) for plan in plans))
    axes.legend(fontsize="small")
