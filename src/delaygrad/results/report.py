"""The report of runs: read, group, compose, write; and the figures of a single run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from delaygrad.records.spread import plural, signed, spread_text
from delaygrad.results.curves import (
    CAPTION,
    TimeAxis,
    direction_panels,
    elapsed_axis,
    epoch_panels,
    measures_of,
    time_panels,
)
from delaygrad.results.figure import write_png
from delaygrad.results.group import RunGroup, by_recipe, group_runs
from delaygrad.results.page import Block, Figure, Page, Prose, Section, write_page
from delaygrad.results.run import Run, read_run, read_runs
from delaygrad.results.tables import (
    accuracy_section,
    configuration_section,
    direction_table,
    environment_section,
    runs_section,
    stages_section,
)
from delaygrad.results.timeline import timeline_panel, write_chrome_trace
from delaygrad.training.run_folder import writing

_MOST_LISTED = 6  # groups, one by one


def write_report(run_dirs: Iterable[Path], output: Path, title: str = "") -> Path:
    """Write one self-contained HTML page about some runs.

    Args:
        run_dirs: the runs' folders; a run may still be active.
        output: the file to write.
        title: of the page; by default the names of data and models.

    Returns:
        The path of the page.

    Raises:
        ConfigError: there is no run in a folder, two have the same name, or the page cannot be
            written.
        DataError: a file of a run is corrupt.
    """
    return write_page(run_page(group_runs(read_runs(run_dirs)), title), output)


def draw_run(run_dir: Path) -> Path:
    """Draw a run's ``curves.png`` and, of a recorded timeline, trace.json and trace.png.

    Returns:
        The path of ``curves.png``.
    """
    run = read_run(run_dir, sound_only=True)  # damage must not keep a result from being shown
    (group,) = group_runs([run])
    panels = epoch_panels([group])
    if run.trace is not None:
        draw_trace(run_dir, run_dir)
    return write_png({"": panels}, run_dir / "curves.png", run_title(run.config, group.name))


def draw_trace(run_dir: Path, folder: Path) -> Path:
    """Write ``trace.json`` and ``trace.png`` of a run into a folder; return the figure's path.

    Raises:
        ConfigError: there is no timeline, or the files cannot be written.
    """
    from delaygrad.records import read_trace

    trace = read_trace(run_dir)
    title = trace.method
    if (run_dir / "config.json").is_file():
        run = read_run(run_dir, sound_only=True)
        title = run_title(run.config, group_runs([run])[0].name)
    turns = " (stages take turns in one process)" if trace.takes_turns else ""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_chrome_trace(trace, folder / "trace.json")
    return write_png({"": [timeline_panel(trace, title)]}, folder / "trace.png", title + turns)


def run_page(groups: Sequence[RunGroup], title: str = "") -> Page:
    """Compose the page about groups of runs."""
    runs = [run for group in groups for run in group.runs]
    states = Counter(run.state for run in runs)
    what = ", ".join(
        [f"{plural(len(runs), 'run')} in {plural(len(groups), 'group')}"]
        + [f"{states[state]} {state}" for state in ("diverged", "unfinished") if states[state]]
    )
    names = ", ".join(run.name for run in runs)
    return Page(
        title=title or _title(groups),
        lead=(result_text(groups), f"{what}."),
        sections=run_sections(groups),
        source=f"Made by delaygrad report from the records of {names}.",
    )


def run_sections(
    groups: Sequence[RunGroup],
    published: Mapping[str, str] | None = None,
    time: Mapping[str, TimeAxis] | None = None,
) -> tuple[Section, ...]:
    """Compose everything about groups of runs; a section with nothing to show is left out.

    Args:
        groups: of the runs.
        published: what was published in the place of a group, by its label; None: no such column.
        time: the axis of time, by recipe; by default the time since each run began.
    """
    found = (
        accuracy_section(groups, published),
        curves_section(groups, time),
        stages_section(groups),
        timeline_section(groups),
        direction_section(groups),
        runs_section(groups),
        configuration_section(groups),
        environment_section(groups),
    )
    return tuple(section for section in found if section is not None)


def curves_section(
    groups: Sequence[RunGroup], time: Mapping[str, TimeAxis] | None = None
) -> Section | None:
    """Draw losses, accuracies and differences to backpropagation, recipe by recipe."""
    elapsed, parts = elapsed_axis(groups), []
    for recipe, members in by_recipe(groups).items():
        if measures_of(members):
            axis = (time or {}).get(recipe, elapsed)
            by_epoch = Figure(panels=epoch_panels(members), caption=CAPTION)
            by_time = Figure(panels=time_panels(members, axis), caption=axis.note)
            parts.append(Section(recipe, (by_epoch, by_time)))
    if len(parts) == 1:
        return Section("Learning curves", parts[0].blocks)
    return Section("Learning curves", (), tuple(parts)) if parts else None


def timeline_section(groups: Sequence[RunGroup]) -> Section | None:
    """Draw the timeline of one run of each group that has recorded one."""
    figures = []
    for group in groups:
        run = next((run for run in group.runs if run.trace), None)
        if run is not None and run.trace is not None:
            turns = " The stages take turns in one process." if run.trace.takes_turns else ""
            text = (
                f"{group.label} ({run.name}): a few iterations. F3 is the forward and B3 the "
                f"backward pass of batch 3.{turns}"
            )
            panel = timeline_panel(run.trace, f"Timeline of {run.name}")
            figures.append(Figure(panels=(panel,), caption=text))
    return Section("Timeline", tuple(figures)) if figures else None


_DIRECTION = Prose("""
Let g be the gradient that a stage applied for a batch (a late one with DDG, a synthetic one with
DNI). Let G be the gradient of the same batch at the parameters that g was applied to. σ = ⟨G, g⟩ /
|G|² is the sufficient direction constant of Huo, Gu and Huang (Features Replay, NeurIPS 2018,
arXiv:1807.04511), here of each stage by itself; convergence needs it above 0. The cosine is ⟨G, g⟩
/ (|G| |g|), and ρ = |g − G|² / |G|². Backpropagation has 1, 1 and 0.
""")


def direction_section(groups: Sequence[RunGroup]) -> Section | None:
    """Tabulate and draw the direction constants of the groups whose runs recorded them."""
    table = direction_table(groups)
    blocks: list[Block] = [table] if table is not None else []
    blocks += [
        Figure(panels=panels, caption=f"{group.label}.")
        for group in groups
        if (panels := direction_panels(group))
    ]
    return Section("Sufficient direction", (_DIRECTION, *blocks)) if blocks else None


def result_text(groups: Sequence[RunGroup]) -> str:
    """Say how accurate the groups became, against backpropagation where that was run too."""
    ends = [
        f"{group.label} {spread_text(final, 2)} %{points}"
        for group in groups
        if (final := group.spread("final_accuracy")) is not None
        for gap in [group.minus_baseline_in(groups)]
        for points in ["" if gap is None else f" ({signed(gap.mean, 2)} points)"]
    ]
    lost = [
        f"{n} of {len(group.runs)} runs of {group.label} diverged."
        if len(group.runs) > 1
        else f"{group.label} diverged."
        for group in groups
        if (n := group.count("diverged"))
    ]
    if not ends:
        return " ".join(["No run has finished: there is no final accuracy.", *lost])
    if len(ends) > _MOST_LISTED:
        ends = [*ends[:_MOST_LISTED], f"and {plural(len(ends) - _MOST_LISTED, 'further group')}"]
    return " ".join([f"Final test accuracy: {', '.join(ends)}.", *lost])


def run_title(config: Mapping[str, Any], name: str) -> str:
    """Name a run by what it trains and how.

    Example:
        >>> run_title({"model": "resnet8", "data": "cifar10"}, "DDG K=2")
        'ResNet-8 on CIFAR-10, DDG K=2'
    """
    model, data = (_spoken(str(config.get(key, "unknown"))) for key in ("model", "data"))
    return f"{model} on {data}, {name}"


def _title(groups: Sequence[RunGroup]) -> str:
    configs = [run.config for group in groups for run in group.runs]
    models, data = (
        ", ".join(dict.fromkeys(str(config.get(name, "unknown")) for config in configs))
        for name in ("model", "data")
    )
    return f"{_spoken(models)} on {_spoken(data)}"


def _spoken(names: str) -> str:
    """Write names as the literature does: ResNet-8, MLP, CIFAR-10."""
    names = re.sub(r"\b(mlp|gpt|cifar)", lambda name: name[0].upper(), names)
    return re.sub(r"\b(CIFAR|resnet)(?=\d)", lambda name: f"{name[0]}-", names).replace(
        "resnet-", "ResNet-"
    )


def accuracy_json(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Return the numbers of each group as plain values; accuracies are in percent."""
    return [
        {
            "name": group.name,
            "recipe": group.recipe,
            "method": group.method,
            "num_stages": group.num_stages,
            **group.to_json(groups),
            "runs": [_run_json(run) for run in group.runs],
        }
        for group in groups
    ]


def _run_json(run: Run) -> dict[str, Any]:
    names = ("name", "seed", "state", "final_accuracy", "best_accuracy")
    return {name: getattr(run, name) for name in names}
