"""``delaygrad compare``: which method reaches backpropagation's loss first."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from delaygrad.errors import ConfigError
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
