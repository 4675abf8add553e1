"""The tables of a report: accuracy, stages, runs, settings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from delaygrad.records import shown_activities
from delaygrad.records.spread import (
    MISSING,
    Spread,
    number_text,
    plural,
    spread_of,
    spread_text,
)
from delaygrad.results.bars import accuracy_panel, share_panel
from delaygrad.results.curves import DIRECTIONS
from delaygrad.results.group import RunGroup, by_recipe
from delaygrad.results.page import Block, Cell, Column, Facts, Figure, Prose, Row, Section, Table
from delaygrad.results.run import Run, number

_PLACES = ("run_dir", "data_dir")  # on the machine that trained; of no use elsewhere


def accuracy_section(
    groups: Sequence[RunGroup], published: Mapping[str, str] | None = None
) -> Section:
    """Tabulate and draw the final accuracy; the best one on the test set stands beside it."""
    panel = accuracy_panel(groups)
    caption = "Each run a ring; the mean; a bar of one standard deviation on each side."
    figures = (Figure(panels=(panel,), caption=caption),) if panel is not None else ()
    return Section("Accuracy", (accuracy_table(groups, published), *figures))


def accuracy_table(groups: Sequence[RunGroup], published: Mapping[str, str] | None = None) -> Table:
    """Tabulate accuracies, losses and time, recipe by recipe.

    ``published`` has what was published in the place of a group, by its label; None: no column.
    """
    columns = (
        Column("runs"),
        Column("final test accuracy (%)", "after the last iteration", number=True),
        Column("minus BP", "points, seed by seed", number=True),
        Column("best test accuracy (%)", "chosen on the test set", number=True),
        Column("test loss", "final, nats", number=True),
        Column("train loss", "last epoch, nats", number=True),
        Column("s per epoch", "training alone", number=True),
        *([Column("published")] if published is not None else []),
    )
    rows: list[Row] = []
    for recipe, members in by_recipe(groups).items():
        rows += [(recipe,)] if recipe else []
        for group in members:
            quoted = [] if published is None else [published.get(group.label, MISSING)]
            rows.append((*_accuracy_row(group, groups), *quoted))
    return Table(
        caption="Accuracy by group of runs", columns=columns, rows=tuple(rows), note=_ACCURACY
    )


_ACCURACY = (
    "a ± b: mean and sample standard deviation (n − 1) over the finished runs of the group. "
    "a alone: one run. The final accuracy is that of the last iteration, fixed before the run. "
    "The best accuracy is the highest of all evaluations during a run. The test set itself chooses "
    "it, so it is too high; papers report it."
)


def _accuracy_row(group: RunGroup, groups: Sequence[RunGroup]) -> tuple[str | Cell, ...]:
    speed = group.spread("samples_per_s")
    seeds = f"seed{'s' * (len(group.runs) > 1)} {', '.join(str(run.seed) for run in group.runs)}"
    lost = [f"{n} {s}" for s in ("diverged", "unfinished") if (n := group.count(s))]
    final = group.spread("final_accuracy")
    state = " or ".join(sorted({run.state for run in group.runs})) or "not begun"
    return (
        Cell(group.name, "; ".join([seeds, *lost]) if group.runs else "", group.series),
        spread_text(final, 2) if final else state,
        spread_text(group.minus_baseline_in(groups), 2, sign=True),
        spread_text(group.spread("best_accuracy"), 2),
        _loss(group.spread("test_loss")),
        _loss(group.spread("train_loss")),
        Cell(
            spread_text(group.spread("epoch_s"), 1),
            "" if speed is None else f"{speed.mean:,.0f} samples/s",
        ),
    )


def _loss(spread: Spread | None) -> str:
    return "< 0.001" if spread is not None and spread.mean < 0.001 else spread_text(spread, 3)


def direction_rows(run: Run) -> list[dict[str, Any]]:
    """Return for each stage what the probes of a run have found; [] without probes."""
    probes, rows = run.of_kind("direction"), []
    for k in range(run.num_stages if probes else 0):
        own = [
            stage
            for probe in probes
            for stage in probe["stages"]
            if stage["stage"] == k and all(stage[name] is not None for name in DIRECTIONS)
        ]
        if not own:  # its turn has not come
            continue
        constants = [stage["sufficient_direction"] for stage in own]
        rows.append(
            {
                "run": run.name,
                "stage": k,
                "delay": own[0]["delay"],
                "probes": len(own),
                "first": constants[0],
                "least": min(constants),
                "positive_share": sum(c > 0 for c in constants) / len(constants),
                **{name: statistics.fmean(stage[name] for stage in own) for name in DIRECTIONS},
            }
        )
    return rows


def direction_table(groups: Sequence[RunGroup]) -> Table | None:
    """Tabulate the direction constants over the probes of each run; None without probes."""
    numbers = ("sufficient_direction", "first", "least", "cosine", "staleness_ratio")
    headings = ("mean σ", "first", "least", "mean cosine", "mean ρ")
    rows = [
        (
            row["run"],
            *(str(row[name]) for name in ("stage", "delay", "probes")),
            *(f"{row[name]:.3f}" for name in numbers),
            f"{row['positive_share']:.0%}",
        )
        for group in groups
        for run in group.runs
        if run.state != "unfinished"
        for row in direction_rows(run)
    ]
    columns = (*("stage", "delay", "probes"), *headings, "share of σ above 0")
    return (
        Table(
            caption="Sufficient direction constant of each stage, over the probes",
            columns=(Column("run"), *(Column(heading, number=True) for heading in columns)),
            rows=tuple(rows),
        )
        if rows
        else None
    )


def stages_section(groups: Sequence[RunGroup]) -> Section | None:
    """Tabulate delay, staleness and shares of time by stage; None before a run has finished."""
    timed = [group for group in groups if any(run.stages for run in group.runs)]
    if not timed:
        return None
    everywhere = [row for group in timed for run in group.runs for row in run.stages]
    activities = shown_activities(averaged=any(row.get("average_share") for row in everywhere))
    columns = (
        Column("stage", "from the input"),
        Column("first layer"),
        Column("delay", "updates", number=True),
        Column("staleness", "at most, updates", number=True),
        *(Column(activity, "%", number=True) for activity in activities),
    )
    rows: list[Row] = []
    drawn: dict[str, dict[str, float]] = {}
    for group in timed:
        runs = [run for run in group.runs if run.stages]
        rows.append((Cell(group.label, _how(runs), group.series),))
        for stage in range(group.num_stages):
            shares = _shares(runs, stage, activities)
            rows.append(_stage_row(runs, stage, shares))
            drawn[f"{group.label}, stage {stage}"] = {k: s.mean for k, s in shares.items() if s}
    table = Table(caption="Delay and shares of time", columns=columns, rows=tuple(rows))
    panel = share_panel(drawn, "share of training time (%)")
    return Section("Stages", (_STAGES, table, Figure(panels=(panel,), caption=_REST)))


_STAGES = Prose(
    "The schedule prescribes the delay: the number of updates that a stage makes between the "
    "forward pass of a batch and the update with its gradient. The staleness is the same number, "
    "counted while a timeline was recorded. Shares are of the training time of the stage's process."
)
_REST = "The rest is work between the actions and, in one process, the turns of the other stages."


def _how(runs: Sequence[Run]) -> str:
    mean = f"mean of {plural(len(runs), 'run')}; " if len(runs) > 1 else ""
    if runs[0].num_stages == 1:
        return f"{mean}one process"
    turns = "stages take turns in one process"
    return f"{mean}{turns if runs[0].takes_turns else 'a process for each stage'}"


def _shares(runs: Sequence[Run], stage: int, activities: Sequence[str]) -> dict[str, Spread | None]:
    rows = [row for run in runs for row in run.stages if row["stage"] == stage]
    return {a: spread_of(number(row.get(f"{a}_share")) for row in rows) for a in activities}


def _stage_row(runs: Sequence[Run], stage: int, shares: Mapping[str, Spread | None]) -> Row:
    rows = [row for run in runs for row in run.stages if row["stage"] == stage]
    traced = [row for run in runs for row in run.traced_stages if row["stage"] == stage]
    staleness = [
        row["staleness_max"] for row in traced if number(row.get("staleness_max")) is not None
    ]
    cuts = (runs[0].summary or {}).get("cuts") or runs[0].config.get("cuts") or []
    first = str(cuts[stage - 1]) if 0 < stage <= len(cuts) else MISSING
    return (
        str(stage),
        first if stage else "(input)",
        ", ".join(sorted({str(row.get("delay", MISSING)) for row in rows})),
        str(max(staleness)) if staleness else MISSING,
        *(number_text(s.mean if s else None, 1, 100) for s in shares.values()),
    )


def runs_section(groups: Sequence[RunGroup]) -> Section:
    """Tabulate every run, and how far it came."""
    validated = any(run.evaluations("validation") for group in groups for run in group.runs)
    columns = (
        Column("run"),
        Column("test accuracy (%)", "final, or the latest", number=True),
        Column("best (%)", "chosen on the test set", number=True),
        *([Column("validation accuracy (%)", "the latest", number=True)] if validated else []),
        Column("test loss", "nats", number=True),
        Column("samples/s", number=True),
        Column("parameters", "sha256"),
    )
    rows: list[Row] = []
    for group in groups:
        rows.append((Cell(group.label, series=group.series),))
        rows += [_run_row(run, validated) for run in group.runs]
    return Section("Runs", (Table(caption="Every run", columns=columns, rows=tuple(rows)),))


def _run_row(run: Run, validated: bool) -> Row:
    test, validation = (run.evaluations(split)[-1:] for split in ("test", "validation"))
    latest = Cell(number_text(run.final_accuracy, 2))
    if run.final_accuracy is None and test:
        latest = Cell(f"{100 * test[0]['accuracy']:.2f}", f"so far, at epoch {test[0]['epoch']:g}")
    best = run.best_test if run.summary is not None else None
    shown = number_text(validation[0]["accuracy"] if validation else None, 2, 100)
    return (
        Cell(run.name, f"seed {run.seed}; {run.state_text}"),
        latest,
        Cell(MISSING)
        if best is None
        else Cell(f"{100 * best['accuracy']:.2f}", f"epoch {best['epoch']:g}"),
        *([shown] if validated else []),
        number_text(run.test_loss, 4),
        number_text(run.result("samples_per_s"), 0),
        str((run.summary or {}).get("parameters_sha256", MISSING))[:12],
    )


def configuration_section(groups: Sequence[RunGroup]) -> Section | None:
    """Show the settings under the names that config.json and the command line give them."""
    configs = {run.name: run.config for group in groups for run in group.runs}
    shown = {
        owner: {name: value for name, value in config.items() if name not in _PLACES}
        for owner, config in configs.items()
    }
    return _settings_section(groups, shown, "Configuration")


def environment_section(groups: Sequence[RunGroup]) -> Section | None:
    """Show versions, processor and commit."""
    found = {run.name: run.environment for group in groups for run in group.runs}
    return _settings_section(groups, found, "Environment")


def compare(settings: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Split settings, by their owner, into those that are the same everywhere and the other names.

    Example:
        >>> compare({"a": {"lr": 0.1, "seed": 0}, "b": {"lr": 0.1, "seed": 1}})
        ({'lr': 0.1}, ['seed'])
    """
    names = dict.fromkeys(name for values in settings.values() for name in values)
    first = next(iter(settings.values()), {})
    same = [
        name
        for name in names
        if all(name in values and values[name] == first.get(name) for values in settings.values())
    ]
    return {name: first[name] for name in same}, [name for name in names if name not in same]


def setting_text(value: Any) -> str:
    """Write a setting.

    Example:
        >>> [setting_text(value) for value in (None, True, ["a", "b"], 0.0005, 600.0)]
        ['none', 'yes', 'a, b', '0.0005', '600']
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(setting_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings_section(
    groups: Sequence[RunGroup], settings: Mapping[str, Mapping[str, Any]], heading: str
) -> Section | None:
    same, differing = compare(settings)
    blocks: list[Block] = []
    if differing:
        rows: list[Row] = []
        for group in groups:
            for run in group.runs:
                own = settings[run.name]
                cells = [setting_text(own[n]) if n in own else MISSING for n in differing]
                rows.append((Cell(run.name, series=group.series), *cells))
        columns = (Column("run"), *map(Column, differing))
        note = f"{MISSING}: the version that made the run does not record it."
        lacking = any(MISSING in row for row in rows)
        blocks.append(
            Table(
                caption="Different between runs",
                columns=columns,
                rows=tuple(rows),
                note=note if lacking else "",
            )
        )
    if same:
        caption = "The same in all runs" if len(settings) > 1 else "Of the run"
        values = {name: setting_text(value) for name, value in same.items()}
        blocks.append(Facts(caption=caption, values=values))
    return Section(heading, tuple(blocks)) if blocks else None
