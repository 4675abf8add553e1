"""``delaygrad reproduce``: the figures and tables of a paper."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from delaygrad.reproduce import Reproduction, reproduce, status
from delaygrad.reproduce.outcome import TABLE
from delaygrad.reproduce.target import ScaleName


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Reproduce the figures and tables of a paper; stop at any time, the same command goes on.

    A paper's targets are the folders experiments/PAPER-*/ of the repository, or your own.
    """

    paper: tyro.conf.Positional[str]
    """The paper, such as huo2018."""
    target: tuple[str, ...] = ()
    """Some of its figures and tables, by name; by default all. See --list."""
    scale: ScaleName = "smoke"
    """smoke: about a minute, shows that everything runs; cpu: hours; gpu: needs one."""
    data_dir: Path | None = None
    """Where the data are: the files, or a folder for each data set (smoke needs none)."""
    experiments: Path = Path("experiments")
    """The folder with the targets."""
    output: Path | None = None
    """Folder for runs, tables and figures; by default reproduced/PAPER."""
    workers: int | None = None
    """Runs at a time; by default as many as CPU cores, or GPUs."""
    publish: bool = False
    """Copy tables, figures and records (without weights and paths) beside the targets."""
    page: Path | None = None
    """Write everything into this file too, as one HTML page."""
    run: bool = True
    """Make the runs that are missing; --no-run: only put together what is there."""
    list_: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Say what there is to reproduce, and how much of it is done."""
    json: bool = False
    """Print the results as JSON instead of tables."""
    quiet: bool = False
    """Show no progress."""

    def __call__(self) -> None:
        request = Reproduction(
            paper=self.paper,
            targets=self.target,
            scale=self.scale,
            data_dir=self.data_dir,
            experiments=self.experiments,
            output=self.output,
            workers=self.workers,
            run=self.run,
            publish=self.publish,
            page=self.page,
        )
        if self.list_:
            self._print_status(status(request))
            return
        results = reproduce(request, quiet=self.quiet)
        if self.json:
            print(json.dumps(results, indent=2))
            return
        for target in request.found_targets():
            path = request.folder(target) / TABLE
            print(f"{path.read_text(encoding='utf-8')}\n{path.parent}\n")

    def _print_status(self, rows: list[dict[str, Any]]) -> None:
        if self.json:
            print(json.dumps(rows, indent=2))
            return
        table = Table(show_lines=True)
        for heading in ("target", "kind", "scale", "done", "about"):
            table.add_column(heading)
        for row in rows:
            done = f"{row['done']} of {row['planned']}"
            table.add_row(row["target"], row["kind"], row["scale"], done, row["about"])
        Console(highlight=False).print(table)
