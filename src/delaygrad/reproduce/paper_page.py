"""A reproduced paper as one page: every target's tables, what was found, and its runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delaygrad.report import group_runs, read_runs, run_sections
from delaygrad.report.page import Block, Column, Figure, Page, Png, Prose, Section, Table
from delaygrad.reproduce import run_state
from delaygrad.reproduce.measured_tables import memory_tables, speed_tables
from delaygrad.reproduce.plan import PlannedRun
from delaygrad.reproduce.speed_target import SpeedTarget
from delaygrad.reproduce.target import Target
from delaygrad.reproduce.text_table import TableSheet, TextTable
from delaygrad.reproduce.training_table import training_tables
from delaygrad.reproduce.training_target import TrainingTarget


def paper_page(paper: str, parts: Sequence[Section]) -> Page:
    """Compose the page.

    Args:
        paper: its name among the experiments.
        parts: of the targets, from ``target_section``.
    """
    return Page(
        title=f"{paper}, reproduced",
        lead=(
            "Every table and figure below was made by one command from records, whose machine is "
            "named with the runs. Published numbers stand beside ours with the place they were "
            "read; recalled ones are marked.",
        ),
        sections=tuple(parts),
        source=f"Made by delaygrad reproduce {paper} from its records.",
    )


def target_section(
    target: Target, results: dict[str, Any], folder: Path, runs: Sequence[PlannedRun]
) -> Section:
    """Compose what there is to say about a target.

    Args:
        target: whose.
        results: what its ``results.json`` holds.
        folder: of its results; the figures are there.
        runs: all that are planned; [] unless it trains.
    """
    content = target.content
    heading = target.heading(results["scale"])
    blocks: list[Block] = [Prose(content.reading)] if content.reading.strip() else []
    blocks.append(
        Prose(f"{content.reference}\n\n{results['scale']}: {results['about']}", note=True)
    )
    sheet = _sheet(target, results)
    blocks += [_table(table) for table in sheet.tables]
    blocks.append(Prose("\n\n".join(sheet.notes), note=True))
    if isinstance(content, TrainingTarget):
        return Section(heading, tuple(blocks), _about_runs(runs))
    pictures = [
        Figure(pictures=(Png(path.read_bytes(), heading),), caption=heading, wide=True)
        for path in sorted(folder.glob("*.png"))
    ]
    return Section(heading, (*blocks, *pictures))


def _sheet(target: Target, results: dict[str, Any]) -> TableSheet:
    content = target.content
    if isinstance(content, TrainingTarget):
        return training_tables(results, content)
    if isinstance(content, SpeedTarget):
        return speed_tables(results["rows"], content.published)
    return memory_tables(results["rows"])


def _table(table: TextTable) -> Table:
    """A column is one of numbers if every cell but "-" begins with a digit or a sign."""
    columns = []
    for index, heading in enumerate(table.headings):
        cells = [row[index] for row in table.rows if row[index] != "-"]
        number = bool(cells) and all(cell[:1] in "+-0123456789" for cell in cells)
        columns.append(Column(heading, number=number))
    return Table(
        caption=table.title or "Measured",
        columns=tuple(columns),
        rows=tuple(tuple(row) for row in table.rows),
    )


def _about_runs(runs: Sequence[PlannedRun]) -> tuple[Section, ...]:
    """The report of the runs, without the table of accuracy, which is here already."""
    begun = [run.run_dir for run in runs if run_state.state_of(run.run_dir) != "new"]
    if not begun:
        return ()
    found = run_sections(group_runs(read_runs(begun)))
    return tuple(section for section in found if section.heading != "Accuracy")
