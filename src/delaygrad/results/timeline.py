"""A recorded timeline: what each stage does during a few iterations, a row per stage."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from delaygrad.records import StageTrace, Trace
from delaygrad.records.measures import steady_iterations
from delaygrad.results.bars import activity_looks, legend
from delaygrad.results.chrome_trace import first_ns
from delaygrad.results.figure import Panel, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _LEFT, _RIGHT = 900.0, 60.0, 12.0
_ROW = 34.0
_ITERATIONS = 4
_LETTERED = ("forward", "backward")
_LEAST_LETTERED = 24.0  # points


def timeline_panel(trace: Trace, description: str) -> Panel:
    """Draw some steady iterations, or the first ones where none is steady.

    Time that no activity covers is named "other": data loading, evaluation, Python between the
    actions; where the stages take turns in one process, mostly the work of the other stages.

    Args:
        trace: of all stages.
        description: what it is, for readers who cannot see it.
    """
    start_ns, end_ns = window(trace)
    unit_ns, unit = (1e6, "ms") if end_ns - start_ns > 1e6 else (1e3, "µs")
    length = (end_ns - start_ns) / unit_ns
    events = (event for stage in trace.stages for event in stage.events)
    averaged = any(event.activity == "average" for event in events)
    looks = activity_looks("other", averaged=averaged)

    def draw(axes: Axes) -> None:
        for row, stage in enumerate(trace.stages):
            axes.barh(row, length, height=0.8, **looks["other"])
            _draw_stage(axes, row, stage, start_ns, end_ns, unit_ns)
        names = [f"stage {stage.stage_index}" for stage in trace.stages]
        axes.set(
            xlim=(0, length), ylim=(len(names) - 0.5, -0.5), xlabel=f"time ({unit})",
            yticks=range(len(names)), yticklabels=names,
        )  # fmt: skip
        legend(axes, looks)

    return Panel(
        draw=draw,
        description=f"{description}: {len(trace.stages)} stages over {length:.3g} {unit}",
        width=_WIDTH,
        height=26 + 42 + _ROW * len(trace.stages),
        margins=(_LEFT, _RIGHT, 26, 42),
    )


def _draw_stage(
    axes: Axes, row: int, stage: StageTrace, start_ns: int, end_ns: int, unit_ns: float
) -> None:
    looks = activity_looks("other")
    per_point = (end_ns - start_ns) / (_WIDTH - _LEFT - _RIGHT)
    for event in stage.events:
        begin_ns, finish_ns = max(event.start_ns, start_ns), min(event.end_ns, end_ns)
        if begin_ns >= finish_ns:
            continue
        left, width = (begin_ns - start_ns) / unit_ns, (finish_ns - begin_ns) / unit_ns
        axes.barh(row, width, left=left, height=0.8, **looks.get(event.activity, looks["other"]))
        if event.activity in _LETTERED and finish_ns - begin_ns > _LEAST_LETTERED * per_point:
            name = f"{event.kind}{event.batch_index}"
            middle: dict[str, Any] = {"ha": "center", "va": "center", "clip_on": True}
            axes.text(left + width / 2, row, name, color=colour("paper"), **middle)


def window(trace: Trace) -> tuple[int, int]:
    """Choose from when to when to draw: a few iterations of stage 0, in the middle of the trace."""
    first = trace.stages[0]
    steady = set(steady_iterations(trace))
    closed = [i for i in first.iterations if i.end_ns is not None]
    shown = [i for i in closed if i.iteration in steady] or closed
    if not shown:
        start_ns = first_ns(trace)
        ends = (event.end_ns for stage in trace.stages for event in stage.events)
        return start_ns, max(start_ns + 1, max(ends, default=0))
    begin = shown[max(0, (len(shown) - _ITERATIONS) // 2)]
    length_ns = statistics.median((i.end_ns or 0) - i.start_ns for i in shown)
    return begin.start_ns, begin.start_ns + max(1, round(_ITERATIONS * length_ns))
