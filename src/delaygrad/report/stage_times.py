"""What each stage did with its time, and how old its gradients were."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from delaygrad.records import ACTIVITIES
from delaygrad.report.marks import mark
from delaygrad.report.page import Cell, Column, Prose, Row, Section, Svg, Table
from delaygrad.report.quantities import MISSING, Spread, number_text, plural, spread_of
from delaygrad.report.run_group import RunGroup
from delaygrad.report.run_record import RunRecord, number

_WIDTH, _HEIGHT = 192, 16


def stages_section(groups: Sequence[RunGroup], heading: str = "Stages") -> Section | None:
    """Tabulate delay, staleness and shares of time by stage; None before a run has finished."""
    timed = [group for group in groups if any(run.stages for run in group.runs)]
    return Section(heading, (_SHARES, _table(timed))) if timed else None


_SHARES = Prose(
    "Delay is what the schedule prescribes: how many updates a stage makes between the forward "
    "pass of a batch and the update with its gradient. Staleness is the same, counted while a "
    "timeline was recorded. Shares are of the training time of the stage's process."
)


def _table(groups: Sequence[RunGroup]) -> Table:
    columns = (
        Column("stage", "from the input"),
        Column("first layer"),
        Column("delay", "updates", number=True),
        Column("staleness", "at most, updates", number=True),
        Column("share of time", "from 0 to 100 %"),
        *(
            Column(activity, "%", number=True, picture=Svg(mark(activity)))
            for activity in ACTIVITIES
        ),
    )
    rows: list[Row] = []
    for group in groups:
        runs = [run for run in group.runs if run.stages]
        rows.append((Cell(group.label, _how(runs), group.series),))
        rows += [_stage_row(runs, stage) for stage in range(runs[0].num_stages)]
    return Table(caption="Delay, and where the time went", columns=columns, rows=tuple(rows))


def _how(runs: Sequence[RunRecord]) -> str:
    mean = f"mean of {plural(len(runs), 'run')}; " if len(runs) > 1 else ""
    if runs[0].num_stages == 1:
        return f"{mean}one process"
    if runs[0].takes_turns:
        return f"{mean}stages took turns in one process"
    return f"{mean}a process for each stage"


def _stage_row(runs: Sequence[RunRecord], stage: int) -> Row:
    rows = [row for run in runs for row in run.stages if row.get("stage") == stage]
    shares = {
        activity: spread_of(number(row.get(f"{activity}_share")) for row in rows)
        for activity in ACTIVITIES
    }
    traced = [row for run in runs for row in run.traced_stages if row.get("stage") == stage]
    staleness = [
        row["staleness_max"] for row in traced if number(row.get("staleness_max")) is not None
    ]
    delays = sorted({str(row.get("delay", MISSING)) for row in rows})
    return (
        str(stage),
        _first_layer(runs[0], stage),
        ", ".join(delays),
        str(max(staleness)) if staleness else MISSING,
        _bar(stage, shares),
        *(_percent(shares[activity]) for activity in ACTIVITIES),
    )


def _first_layer(run: RunRecord, stage: int) -> str:
    cuts = (run.summary or {}).get("cuts") or run.config.get("cuts") or []
    if stage == 0:
        return "(input)"
    return str(cuts[stage - 1]) if stage <= len(cuts) else MISSING


def _percent(share: Spread | None) -> str:
    return number_text(None if share is None else share.mean, 1, 100)


def _bar(stage: int, shares: dict[str, Spread | None]) -> Svg:
    left, parts, told = 0.0, [], []
    for activity, share in shares.items():
        if share is None:
            continue
        width = _WIDTH * share.mean
        title = f"{activity} {100 * share.mean:.1f} %"
        parts.append(
            f'<rect class="{activity}" x="{left:.1f}" y="1" width="{width:.1f}" '
            f'height="{_HEIGHT - 2}"><title>{escape(title)}</title></rect>'
        )
        told.append(title)
        left += width
    description = escape(f"stage {stage}: {', '.join(told)}")
    return Svg(
        f'<svg class="bar" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{description}">'
        f'<path class="grid" d="M0 {_HEIGHT - 1}H{_WIDTH}"/>{"".join(parts)}</svg>'
    )
