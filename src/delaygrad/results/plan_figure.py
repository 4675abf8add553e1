"""A plan as panels: speed-up against K, and what each stage takes in time and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from delaygrad.planning import Plan
from delaygrad.planning.forecast import StagePlan
from delaygrad.results.bars import Bar, bar_panel
from delaygrad.results.figure import Panel, colour
from delaygrad.results.lines import Line, line_panel

_SECONDS = {"forward_s": "forward", "backward_s": "backward", "update_s": "update"}
_MEMORY = {
    "graph_bytes": "graphs", "boundary_bytes": "boundaries", "message_bytes": "messages",
    "working_bytes": "working", "stale_parameter_bytes": "stale parameters",
    "parameter_bytes": "parameters", "gradient_bytes": "gradients", "optimizer_bytes": "optimizer",
}  # fmt: skip


def plan_panels(plan: Plan) -> tuple[Panel, ...]:
    """Return the panels of a plan, for ``write_png``."""
    return (
        _speed(plan),
        _stages(plan, "ms per iteration", _SECONDS, lambda stage: stage.times(), 1e3),
        _stages(plan, "memory (MiB)", _MEMORY, lambda stage: vars(stage.memory), 2**-20),
    )


def _speed(plan: Plan) -> Panel:
    rows = sorted(plan.forecasts, key=lambda forecast: forecast.stages)
    counts, one_s = [row.stages for row in rows], plan.whole.total_s
    worst = [one_s / row.data_parallel.worst_s for row in rows]
    best = [one_s / row.data_parallel.best_s for row in rows]
    lines = [
        Line(label="K (ideal)", x=counts, y=counts, series=0),
        Line(label="pipeline", x=counts, y=[row.speedup for row in rows], series=1),
        Line(label="data parallel", x=counts, y=worst, low=worst, high=best, series=2),
    ]
    return line_panel(lines, "predicted speed-up", "devices, K")


def _stages(
    plan: Plan,
    xlabel: str,
    names: Mapping[str, str],
    values_of: Callable[[StagePlan], Mapping[str, Any]],
    scale: float,
) -> Panel:
    bars = [
        Bar(
            label=f"K={forecast.stages}, stage {stage.stage}",
            parts={names[name]: scale * values_of(stage)[name] for name in names},
        )
        for forecast in plan.forecasts
        for stage in forecast.stage_plans
    ]
    looks = {name: {"facecolor": colour(n)} for n, name in enumerate(names.values())}
    return bar_panel(bars, xlabel, looks)
