"""A recorded timeline as SVG that takes its colours from the page: a row per stage."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from delaygrad.records import ACTIVITIES, Event, StageTrace, Trace
from delaygrad.report.axis import Axis, fit_axis
from delaygrad.report.page import Figure, Key, Section, Svg
from delaygrad.report.run_group import RunGroup
from delaygrad.report.run_record import RunRecord
from delaygrad.report.timeline import window

_WIDTH, _LEFT, _RIGHT = 900, 60, 890
_ROW, _BAR = 34, 26
_LETTERED = ("forward", "backward")
_LEAST_LETTERED = 24  # pixels


def timeline_section(groups: Sequence[RunGroup], heading: str = "Timeline") -> Section | None:
    """Draw the timeline of a run of each group that has recorded one; None if none has."""
    traced = [next((run for run in group.runs if run.trace), None) for group in groups]
    figures = tuple(
        _figure(group, run, run.trace)
        for group, run in zip(groups, traced, strict=True)
        if run is not None and run.trace is not None
    )
    return Section(heading, figures) if figures else None


def _figure(group: RunGroup, run: RunRecord, trace: Trace) -> Figure:
    turns = " The stages take turns in one process." if trace.takes_turns else ""
    return Figure(
        pictures=(timeline_plot(trace, f"Timeline of {run.name}"),),
        caption=f"{group.label} ({run.name}): a few iterations, measured. F3 is the forward and B3 "
        f"the backward pass of batch 3.{turns}",
        legend=tuple(Key(activity, activity) for activity in ACTIVITIES),
        wide=True,
    )


def timeline_plot(trace: Trace, description: str) -> Svg:
    """Draw what ``window`` chooses.

    Args:
        trace: of all stages.
        description: what it is, for who cannot see it.
    """
    start_ns, end_ns = window(trace)
    unit_ns, unit = (1e6, "ms") if end_ns - start_ns > 1e6 else (1e3, "µs")
    x = fit_axis(f"time ({unit})", [0.0, (end_ns - start_ns) / unit_ns], tight=True)
    bottom = _ROW * len(trace.stages)
    rows = "\n".join(
        _row(stage, number * _ROW, start_ns, end_ns) for number, stage in enumerate(trace.stages)
    )
    told = f"{description}: {len(trace.stages)} stages over {x.high:.3g} {unit}"
    return Svg(
        f'<svg viewBox="0 0 {_WIDTH} {bottom + 42}" role="img" aria-label="{escape(told)}">\n'
        f"{rows}\n{_time_axis(x, bottom)}\n</svg>"
    )


def _time_axis(x: Axis, bottom: int) -> str:
    parts = [f'<path class="base" d="M{_LEFT} {bottom}H{_RIGHT}"/>']
    for tick in x.ticks:
        across = _LEFT + x.place(tick) * (_RIGHT - _LEFT)
        parts.append(f'<path class="base" d="M{across:.1f} {bottom}v4"/>')
        parts.append(f'<text class="middle" x="{across:.1f}" y="{bottom + 17}">{tick:g}</text>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text class="middle" x="{middle:g}" y="{bottom + 36}">{escape(x.label)}</text>')
    return "".join(parts)


def _row(stage: StageTrace, top: int, start_ns: int, end_ns: int) -> str:
    parts = [f'<text x="0" y="{top + _ROW / 2 + 4:g}">stage {stage.stage_index}</text>']
    scale = (_RIGHT - _LEFT) / (end_ns - start_ns)
    for event in sorted(stage.events, key=lambda event: event.start_ns):
        first_ns, last_ns = max(event.start_ns, start_ns), min(event.end_ns, end_ns)
        if first_ns < last_ns:
            left = _LEFT + scale * (first_ns - start_ns)
            parts.append(_slice(stage, event, left, scale * (last_ns - first_ns), top))
    return "".join(parts)


def _slice(stage: StageTrace, event: Event, left: float, width: float, top: int) -> str:
    action = f"{stage.stage_index}{event.kind}{event.batch_index}"
    title = f"{event.activity} {action}: {1e-6 * event.duration_ns:.3g} ms"
    margin = (_ROW - _BAR) // 2
    drawn = (
        f'<rect class="{escape(event.activity)}" x="{left:.2f}" y="{top + margin}" '
        f'width="{max(width, 0.4):.2f}" height="{_BAR}"><title>{escape(title)}</title></rect>'
    )
    if event.activity in _LETTERED and width >= _LEAST_LETTERED:
        name = escape(f"{event.kind}{event.batch_index}")
        drawn += (
            f'<text class="letter" x="{left + width / 2:.1f}" y="{top + _ROW / 2 + 4:g}">'
            f"{name}</text>"
        )
    return drawn
