"""``delaygrad bench``: a contest of throughput on this machine, or between hosts."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from delaygrad.bench import ContestConfig, run_contest
from delaygrad.errors import ConfigError
from delaygrad.records.spread import quartiles_text
from delaygrad.results import write_png
from delaygrad.results.bars import contest_panel
from delaygrad.training.run_folder import environment, write_json

_ROLES = {
    "baseline": "/ {}",
    "best_pipeline": "/ best pipeline ({})",
    "ddp": "/ {}",
    "best_ddp": "/ best {}",
}
_WIDTH = 130  # of tables in a file


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure delayed gradients against backpropagation, pipelines and data parallelism.

    The contestants take turns in one run. To put the ranks on several hosts, start the same command
    on each with torchrun, and OMP_NUM_THREADS at the number of cores.
    """

    run: tyro.conf.OmitArgPrefixes[ContestConfig]
    output: Path | None = None
    """Write the results here, as JSON."""
    figure: Path | None = None
    """Draw them here, as PNG."""
    json: bool = False
    """Print the results as JSON instead of a table."""
    quiet: bool = False
    """Show no progress."""

    def __call__(self) -> None:
        if os.environ.get("RANK", "0") == "0":
            for path in (self.output, self.figure):
                _require_writable(path)  # a contest may take an hour
        results = run_contest(self.run, quiet=self.quiet)
        if results is None:  # another rank reports
            return
        command = " ".join(["delaygrad", *sys.argv[1:]])
        results = {"command": command, "environment": environment(), **results}
        if self.json:
            print(json.dumps(results, indent=2), flush=True)
        else:
            print_contest(results)
        if self.output is not None:
            write_json(self.output, results)
        if self.figure is not None:
            setting = f"stages: {results['num_stages']}, link: {results['link']}"
            title = f"{results['description']}\n{setting}"
            write_png({"": [contest_panel(results)]}, self.figure, title)


def _require_writable(path: Path | None) -> None:
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"there is no such folder ({path.parent}); make it first")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"cannot write there ({path}); choose another file")


def print_contest(results: dict[str, Any]) -> None:
    """Print a contest's results as tables: the contestants, and where DDG's stages spend time."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    console.print(
        f"{results['description']}; {results['parameters']:,} parameters; stages: "
        f"{results['num_stages']} (cut at {', '.join(results['cuts']) or 'nothing'}); link: "
        f"{results['link']}",
        soft_wrap=True,
    )
    compared = {role: name for role, name in results["compared_with"].items() if name is not None}
    if compared.get("best_ddp") == compared.get("ddp"):
        compared.pop("best_ddp", None)
    table = Table(title="throughput (median of the rounds, quartiles)", title_justify="left")
    table.add_column("contestant")
    for heading in ("ms", *(_ROLES[role].format(name) for role, name in compared.items())):
        table.add_column(heading, justify="right")
    for contestant in results["contestants"]:
        if "does_not_run" in contestant:
            continue
        ratios = (contestant["throughput_against"][role] for role in compared)
        milliseconds = f"{1e3 * contestant['iteration']['median']:.1f}"
        table.add_row(contestant["title"], milliseconds, *map(quartiles_text, ratios))
    console.print(table)
    for contestant in results["contestants"]:
        if "does_not_run" in contestant:
            reason = contestant["does_not_run"]
            console.print(f"{contestant['title']}: does not run: {reason}", markup=False)
    _print_stages(results, console)
    if results["smoke"]:
        console.print("a smoke test: these figures say nothing about speed")


def _print_stages(results: dict[str, Any], console: Console) -> None:
    staged = [contestant for contestant in results["contestants"] if contestant.get("stages")]
    if not staged:
        return
    activities = [name for name in staged[0]["stages"][0] if name != "average"]  # no replicas
    table = Table(title="stages (ms per iteration)", title_justify="left")
    table.add_column("contestant")
    for heading in ("stage", *activities):
        table.add_column(heading, justify="right")
    for contestant in staged:
        for index, stage in enumerate(contestant["stages"]):
            cells = [f"{1e3 * stage[name]:.1f}" for name in activities]
            table.add_row(contestant["title"], str(index), *cells)
    console.print(table)
