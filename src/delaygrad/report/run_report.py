"""The report of some runs: read, group, compose, write."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from delaygrad.report.accuracy import accuracy_table
from delaygrad.report.direction import direction_section
from delaygrad.report.headline import headline
from delaygrad.report.html_page import write_page
from delaygrad.report.learning_curves import curves_section
from delaygrad.report.page import Page, Section
from delaygrad.report.quantities import plural
from delaygrad.report.run_group import RunGroup, group_runs
from delaygrad.report.run_record import read_runs
from delaygrad.report.run_table import runs_table
from delaygrad.report.settings import (
    compare,
    configuration_section,
    environment_section,
    setting_text,
)
from delaygrad.report.stage_times import stages_section
from delaygrad.report.timeline_plot import timeline_section

_TELLING = {
    "data": "{}", "model": "{}", "optimizer": "{}", "epochs": "{} epochs",
    "batch_size": "batches of {}",
}  # fmt: skip


def write_report(run_dirs: Iterable[Path], output: Path, title: str = "") -> Path:
    """Write one self-contained HTML page about some runs.

    Args:
        run_dirs: the runs' folders; a run may still be under way.
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


def run_page(groups: Sequence[RunGroup], title: str = "") -> Page:
    """Compose the page about groups of runs."""
    runs = [run for group in groups for run in group.runs]
    states = Counter(run.state for run in runs)
    what = ", ".join(
        [f"{plural(len(runs), 'run')} in {plural(len(groups), 'group')}"]
        + [f"{states[state]} {state}" for state in ("diverged", "unfinished") if states[state]]
    )
    return Page(
        title=title or _title(groups),
        lead=(headline(groups), f"{what}: {_facts(groups)}."),
        sections=run_sections(groups),
        source=f"Made by delaygrad report from the records of {', '.join(r.name for r in runs)}.",
    )


def run_sections(groups: Sequence[RunGroup]) -> tuple[Section, ...]:
    """Compose all that there is to say about groups of runs, for a page of one's own.

    A section with nothing to show is left out.
    """
    found = (
        Section("Accuracy", (accuracy_table(groups),)),
        curves_section(groups),
        stages_section(groups),
        timeline_section(groups),
        direction_section(groups),
        Section("Runs", (runs_table(groups),)),
        configuration_section(groups),
        environment_section(groups),
    )
    return tuple(section for section in found if section is not None)


def _title(groups: Sequence[RunGroup]) -> str:
    configs = [run.config for group in groups for run in group.runs]
    models, data = (
        ", ".join(dict.fromkeys(str(config.get(name, "unknown")) for config in configs))
        for name in ("model", "data")
    )
    return f"{_spoken(models)} on {_spoken(data)}"


def _spoken(names: str) -> str:
    """Write names as the literature does.

    Example:
        >>> _spoken("resnet8, mlp"), _spoken("cifar10")
        ('ResNet-8, MLP', 'CIFAR-10')
    """
    names = re.sub(r"\b(mlp|gpt|cifar)", lambda name: name[0].upper(), names)
    return re.sub(r"\b(CIFAR|resnet)(?=\d)", lambda name: f"{name[0]}-", names).replace(
        "resnet-", "ResNet-"
    )


def _facts(groups: Sequence[RunGroup]) -> str:
    configs = {run.name: run.config for group in groups for run in group.runs}
    same, _ = compare(configs)
    told = [
        text.format(_spoken(setting_text(same[name])))
        for name, text in _TELLING.items()
        if name in same
    ]
    return ", ".join(told) or "no setting in common"
