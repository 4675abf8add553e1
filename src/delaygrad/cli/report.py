"""``delaygrad report``: runs as one HTML page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from delaygrad.results import group_runs, read_runs, run_page, write_page
from delaygrad.results.report import accuracy_json


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make one self-contained HTML page of runs: curves, accuracy, stages, settings."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """The runs' folders; runs that differ in their seed alone form a group."""
    output: Path = Path("report.html")
    """The file to write."""
    title: str = ""
    """Title of the page; by default the names of model and data."""
    json: bool = False
    """Print the page's path and the numbers of each group as JSON."""

    def __call__(self) -> None:
        groups = group_runs(read_runs(self.run_dirs))
        path = write_page(run_page(groups, self.title), self.output)
        if self.json:
            table = {"report": str(path), "groups": accuracy_json(groups)}
            print(json.dumps(table, indent=2, allow_nan=False))
        else:
            print(path)
