"""``delaygrad reproduce`` and ``delaygrad compare``: many runs, their figures and tables."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from delaygrad.errors import ConfigError
from delaygrad.reproduce import Reproduction, reproduce, status
from delaygrad.reproduce.compare import CompareConfig, compare
from delaygrad.reproduce.paper import TABLE


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare methods with backpropagation at equal samples; say which to use.

    Stop at any time; the same command continues.

    Args:
        config: a TOML or JSON file with any of these settings; flags win.
        output: folder for runs, tables, figures and page.html.
        workers: runs at a time; by default as many as CPU cores, or GPUs.
        json: print the results as JSON instead of tables.
        quiet: show no progress.
    """

    what: CompareConfig
    config: Path | None = None
    output: Path = Path("compared")
    workers: int | None = None
    json: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers must be at least 1 (workers: {self.workers})")

    def __call__(self) -> None:
        results = compare(
            self.what,
            self.output,
            command=shlex.join(["delaygrad", *sys.argv[1:]]),
            workers=self.workers,
            quiet=self.quiet,
        )
        if self.json:
            print(json.dumps(results, indent=2))
        else:
            print((self.output / TABLE).read_text(encoding="utf-8"))
            print(f"{self.output / 'page.html'}\n\n{results['summary']}")


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
