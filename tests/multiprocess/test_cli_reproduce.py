"""Figures and tables of a target of each kind, at the smallest scale."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from commands import delaygrad

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAMES = {"direction", "memory", "resnet8", "speedup"}


@pytest.mark.parametrize(
    "names", [NAMES, pytest.param({"accuracy"}, marks=pytest.mark.full)], ids=["kinds", "rest"]
)
def test_smoke_of_targets(names: set[str], tmp_path: Path) -> None:
    experiments = tmp_path / "experiments"
    for name in sorted(names):
        (experiments / f"huo2018-{name}").mkdir(parents=True)
        target = f"huo2018-{name}/target.toml"
        shutil.copyfile(EXPERIMENTS / target, experiments / target)
    words = ("reproduce", "huo2018", "--experiments", experiments, "--output", tmp_path / "out")
    done = delaygrad(*words, "--publish")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    for name in names:
        folder = tmp_path / "out" / name / "smoke"
        assert (folder / "table.md").read_text() in done.stdout
        assert list(folder.glob("*.png"))
        published = experiments / f"huo2018-{name}" / "records" / "smoke"
        results = json.loads((published / "results.json").read_text())
        assert results["rows"], name
        assert not any("does_not_run" in row for row in results["rows"])
        assert all(row["final_accuracy"]["n"] == 1 for row in results["rows"] if "series" in row)
        for path in published.rglob("*"):
            if path.is_file() and path.suffix != ".png":
                text = path.read_text()
                assert str(tmp_path) not in text, path
                assert socket.gethostname() not in text.split('"'), path

    # All is there: the same command has nothing left to do.
    again = delaygrad(*words, "--json")
    assert (again.returncode, again.stderr) == (0, "")


def test_list_and_missing_targets(tmp_path: Path) -> None:
    listed = delaygrad("reproduce", "huo2018", "--experiments", EXPERIMENTS, "--list")
    assert all(name in listed.stdout for name in (*NAMES, "accuracy"))
    missing = delaygrad("reproduce", "huo2018", "--experiments", tmp_path)
    assert missing.returncode == 1
    assert missing.stderr.startswith("delaygrad: there is nothing to reproduce of this paper")
