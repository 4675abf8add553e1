"""``delaygrad reproduce``: the figures and tables of a paper."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from delaygrad.reproduce import Reproduction, reproduce, status
from delaygrad.reproduce.paper import TABLE


@dataclass(frozen=True, kw_only=True)
class Reproduce(Reproduction):
    """Reproduce the figures and tables of a paper; stop at any time, the same command continues.

    A paper's targets are the folders experiments/PAPER-*/ of the repository, or your own.
    """

    paper: tyro.conf.Positional[str]
    """The paper, such as huo2018."""
    list_: Annotated[bool, tyro.conf.arg(name="list")] = False
    """List the targets, and how much of each is done."""
    json: bool = False
    """Print the results as JSON instead of tables."""
    quiet: bool = False
    """Show no progress."""

    def __call__(self) -> None:
        if self.list_:
            self._print_status()
            return
        results = reproduce(self, quiet=self.quiet)
        if self.json:
            print(json.dumps(results, indent=2))
            return
        for target in self.found_targets():
            path = self.folder(target) / TABLE
            print(f"{path.read_text(encoding='utf-8')}\n{path.parent}\n")

    def _print_status(self) -> None:
        rows = status(self)
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
