"""How far the delayed gradients of each stage still pointed downhill, over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from delaygrad.report.axis import fit_axis
from delaygrad.report.learning_curves import Curve, mean_curve, thinned
from delaygrad.report.line_plot import Line, line_plot
from delaygrad.report.page import Block, Figure, Key, Prose, Section, Svg
from delaygrad.report.quantities import MISSING, plural
from delaygrad.report.run_group import RunGroup
from delaygrad.report.run_record import RunRecord, number

_MEASURES = (
    ("sufficient_direction", "sufficient direction σ"),
    ("cosine", "cosine of the angle"),
    ("staleness_ratio", "staleness ratio ρ"),
)

_MEANING = Prose("""
Of a batch, let g be the gradient that a stage applied (of DDG a late one, of DNI a synthetic one),
and G the gradient of the same batch at the parameters that it was applied to. σ = ⟨G, g⟩ / |G|² is
the sufficient direction constant of Huo, Gu and Huang (Features Replay, NeurIPS 2018,
arXiv:1807.04511), here of each stage by itself; convergence needs it above 0. The cosine is
⟨G, g⟩ / (|G| |g|), and ρ = |g − G|² / |G|². Of backpropagation they are 1, 1 and 0.
""")


def direction_section(
    groups: Sequence[RunGroup], heading: str = "Sufficient direction"
) -> Section | None:
    """Draw the constants of the groups whose runs recorded them; None if no run has."""
    probed = [group for group in groups if any(_rows(run) for run in group.runs)]
    figures: tuple[Block, ...] = tuple(_figure(group) for group in probed)
    return Section(heading, (_MEANING, *figures)) if probed else None


def _figure(group: RunGroup) -> Figure:
    runs = [run for run in group.runs if _rows(run)]
    rows = [row for run in runs for _, stages in _rows(run) for row in stages]
    delays = {row["stage"]: row.get("delay", MISSING) for row in rows}
    stages = sorted(delays)
    mean = f", mean of {plural(len(runs), 'run')}" if len(runs) > 1 else ""
    return Figure(
        pictures=tuple(_panel(runs, stages, field, label) for field, label in _MEASURES),
        caption=f"{group.label}{mean}.",
        legend=tuple(Key(f"stage {stage} (delay {delays[stage]})", stage + 1) for stage in stages),
    )


def _panel(runs: Sequence[RunRecord], stages: Sequence[int], field: str, label: str) -> Svg:
    lines = []
    for stage in stages:
        curves = [stage_curve(run, stage, field) for run in runs]
        points = thinned([point for _, point in mean_curve(curves)])
        lines.append(Line(label=f"stage {stage}", points=points, series=stage + 1, marked=True))
    values = [y for line in lines for _, y in line.points if math.isfinite(y)]
    x = fit_axis("epoch", [x for line in lines for x, _ in line.points], include=[0], tight=True)
    y = fit_axis(label, values, include=[0.0, 1.0])
    ends = [f"{line.label}: {line.points[-1][1]:.3g}" for line in lines if line.points]
    description = f"Line plot: {label} against epoch. At the end {'; '.join(ends)}."
    return line_plot(lines, x, y, description, reference=0.0)


def stage_curve(run: RunRecord, stage: int, field: str) -> Curve:
    """Return one constant of one stage; a record without it is left out."""
    found: Curve = []
    for event, stages in _rows(run):
        for row in stages:
            value = number(row.get(field))
            if row["stage"] == stage and value is not None and math.isfinite(value):
                found.append((event["iteration"], (event["epoch"], value)))
    return found


def _rows(run: RunRecord) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    return [(event, event["stages"]) for event in run.of_kind("direction")]
