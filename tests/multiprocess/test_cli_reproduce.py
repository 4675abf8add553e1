"""Every figure and table of the repository's papers, at the smallest scale."""

from __future__ import annotations

import json
import resource
import shutil
import socket
from pathlib import Path

import pytest
from commands import DELAYGRAD, delaygrad, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def cpu_seconds() -> float:
    """CPU time of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_smoke_of_all_targets(tmp_path: Path) -> None:
    experiments = tmp_path / "experiments"
    for path in (ROOT / "experiments").glob("huo2018-*/target.toml"):
        (experiments / path.parent.name).mkdir(parents=True)
        shutil.copyfile(path, experiments / path.parent.name / path.name)
    words = ("reproduce", "huo2018", "--experiments", experiments, "--output", tmp_path / "out")
    before_s = cpu_seconds()
    with running(*DELAYGRAD, *words, "--publish") as process:
        out, err = process.communicate(timeout=500)
    used_s = cpu_seconds() - before_s
    assert process.returncode == 0, err
    assert "Traceback" not in err
    # Three minutes of two cores, of which a part is alone; the time itself depends on who else is
    # on the machine.
    assert used_s < 240, f"smoke of all targets took {used_s:.0f} s of CPU time"

    names = sorted(path.name.removeprefix("huo2018-") for path in experiments.iterdir())
    assert names == ["accuracy", "direction", "memory", "resnet8", "speedup"]
    for name in names:
        folder = tmp_path / "out" / name / "smoke"
        assert (folder / "table.md").read_text() in out
        assert list(folder.glob("*.png"))
        published = experiments / f"huo2018-{name}" / "records" / "smoke"
        results = json.loads((published / "results.json").read_text())
        assert results["rows"], name
        assert not any("does_not_run" in row for row in results["rows"])
        for path in published.rglob("*"):
            if path.is_file() and path.suffix != ".png":
                text = path.read_text()
                assert str(tmp_path) not in text, path
                assert socket.gethostname() not in text.split('"'), path

    resnet8 = tmp_path / "out" / "resnet8" / "smoke" / "results.json"
    rows = {row["series"]: row for row in json.loads(resnet8.read_text())["rows"]}
    assert rows["sgd-bp-k1"]["final_accuracy"]["mean"] > 80
    assert rows["sgd-ddg-k4"]["final_accuracy"]["mean"] > 60

    # All is there: the same command has nothing left to do.
    again = delaygrad(*words, "--json")
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""


def test_list_and_missing_targets(tmp_path: Path) -> None:
    listed = delaygrad("reproduce", "huo2018", "--experiments", ROOT / "experiments", "--list")
    assert listed.returncode == 0, listed.stderr
    for name in ("accuracy", "direction", "memory", "resnet8", "speedup"):
        assert name in listed.stdout
    missing = delaygrad("reproduce", "huo2018", "--experiments", tmp_path)
    assert missing.returncode == 1
    assert missing.stderr.startswith("delaygrad: there is nothing to reproduce of this paper")
