"""Runs of several kinds, and the page about them, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from markup import Element, parse
from recorded_runs import record_run

from delaygrad.results import write_report


@dataclass(frozen=True)
class Reported:
    folders: list[Path]
    path: Path
    page: Element


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    root = tmp_path_factory.mktemp("reported")
    folders = [
        record_run(root / "bp-0", method="bp", accuracy=0.80, best=0.83),
        record_run(root / "bp-1", method="bp", accuracy=0.78, seed=1),
        record_run(
            root / "ddg-0", stages=3, accuracy=0.77, runtime="distributed", trace=True,
            direction=True,
        ),
        record_run(root / "ddg-1", stages=3, runtime="distributed", seed=1, until=20),
        record_run(root / "ddg-9", stages=9, until=20, diverged=True, environment={"torch": "9"}),
    ]  # fmt: skip
    path = write_report(folders, root / "report.html")
    return Reported(folders, path, parse(path.read_text(encoding="utf-8")))
