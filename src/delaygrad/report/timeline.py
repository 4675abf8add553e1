"""A picture of a few iterations: what every stage does, moment by moment."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from delaygrad.records import Event, Trace
from delaygrad.records.measures import steady_iterations
from delaygrad.report.chrome_trace import first_ns

# Okabe and Ito's colours, which people who see few colours can tell apart; beside that, forward
# and backward carry letters, and waiting is pale and hatched.
_LOOKS: dict[str, dict[str, Any]] = {
    "forward": {"facecolor": "#0072B2"},
    "backward": {"facecolor": "#E69F00"},
    "update": {"facecolor": "#009E73"},
    "send": {"facecolor": "#000000"},
    "wait": {"facecolor": "#EEEEEE", "hatch": "////", "edgecolor": "#999999", "linewidth": 0},
}
_LETTER_COLOURS = {"forward": "white", "backward": "black"}
_ITERATIONS = 4
_ROW_HEIGHT = 0.8
_LEAST_LETTERED = 0.025  # of the figure's width


def draw_timeline(trace: Trace, path: Path, title: str) -> None:
    """Draw some steady iterations (or the first ones, where none is steady) as a Gantt chart.

    Args:
        trace: of all stages.
        path: where to put the figure; the name's ending says the format.
        title: above the figure.
    """
    # Imported here: worker processes import this module and draw nothing.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    start_ns, end_ns = window(trace)
    unit_ns, unit = (1e6, "ms") if end_ns - start_ns > 1e6 else (1e3, "µs")
    figure = Figure(figsize=(11, 1.6 + 0.55 * len(trace.stages)), layout="constrained")
    axes = figure.subplots()
    for row, stage in enumerate(trace.stages):
        for event in stage.events:
            if event.end_ns > start_ns and event.start_ns < end_ns:
                _draw(axes, row, event, start_ns, end_ns, unit_ns)
    axes.set(
        xlim=(0, (end_ns - start_ns) / unit_ns),
        ylim=(len(trace.stages) - 0.5, -0.5),  # stage 0 on top
        xlabel=f"time ({unit})",
        yticks=range(len(trace.stages)),
        yticklabels=[f"stage {stage.stage_index}" for stage in trace.stages],
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title + (" (stages take turns in one process)" if trace.takes_turns else ""))
    figure.legend(
        handles=[Patch(label=activity, **look) for activity, look in _LOOKS.items()],
        loc="outside lower center",
        ncols=len(_LOOKS),
        frameon=False,
    )
    figure.savefig(path, dpi=150)


def _draw(axes: Any, row: int, event: Event, start_ns: int, end_ns: int, unit_ns: float) -> None:
    left, width = (event.start_ns - start_ns) / unit_ns, event.duration_ns / unit_ns
    axes.barh(row, width, left=left, height=_ROW_HEIGHT, **_LOOKS[event.activity])
    seen_ns = min(event.end_ns, end_ns) - max(event.start_ns, start_ns)
    if event.activity in _LETTER_COLOURS and seen_ns > _LEAST_LETTERED * (end_ns - start_ns):
        axes.text(
            (max(event.start_ns, start_ns) + seen_ns / 2 - start_ns) / unit_ns,
            row,
            f"{event.kind}{event.batch_index}",
            color=_LETTER_COLOURS[event.activity],
            ha="center",
            va="center",
            fontsize=8,
            clip_on=True,
        )


def window(trace: Trace) -> tuple[int, int]:
    """Choose from when to when to draw: a few iterations of stage 0, in mid-trace."""
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
