"""Rows, tables and figures of speed and memory, from measurements on record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from targets import MEMORY, SPEED, write_target

from delaygrad.errors import ConfigError, DataError
from delaygrad.methods import DDG
from delaygrad.reproduce import Reproduction, reproduce
from delaygrad.reproduce.measured import MeasuredTarget, Measurement
from delaygrad.reproduce.memory import MemoryLine, MemoryTarget
from delaygrad.reproduce.speed import SpeedLine, SpeedTarget, speed_ups, stage_times

STAGES = [
    {"forward": 1.0, "backward": 2.0, "update": 0.0, "send": 0.25, "wait": 0.75},
    {"forward": 1.0, "backward": 1.0, "update": 0.0, "send": 0.25, "wait": 1.75},
]
CONTEST: dict[str, Any] = {
    "smoke": False,
    "contestants": [
        {"name": "bp", "title": "BP", "iteration": {"median": 5.0}, "stages": []},
        {
            "name": "ddg",
            "title": "DDG",
            "iteration": {"median": 4.0},
            "throughput_against": {"baseline": {"median": 1.25, "quartiles": [1.2, 1.3]}},
            "stages": STAGES,
        },
        {"name": "zb-m4", "title": "ZB", "does_not_run": "no"},
    ],
}


def keep(measurement: Measurement, found: dict[str, Any]) -> None:
    replace(measurement, measure=lambda: found).make()


def request(tmp_path: Path, **more: Any) -> Reproduction:
    folders = {"experiments": tmp_path / "experiments", "output": tmp_path / "out"}
    return Reproduction(paper="paper", run=False, **folders, **more)


def test_speed(tmp_path: Path) -> None:
    target = write_target(tmp_path / "experiments", SPEED, "paper-speed")
    asked = request(tmp_path)
    (measurement,) = asked.plan(target)
    assert reproduce(asked, quiet=True)["speed"]["rows"] == []
    keep(measurement, {"contest": CONTEST})
    ours, other = reproduce(asked, quiet=True)["speed"]["rows"]
    assert (ours["stages"], ours["iteration_s"], ours["baseline_s"]) == (2, 4.0, 5.0)
    assert ours["communication_share"] == (0.25 + 0.75) / 4
    assert ours["paper_rule"] == pytest.approx(5 / (2 + 3 / 2), abs=1e-4)
    assert other["does_not_run"] == "no"
    folder = asked.folder(target)
    table = (folder / "table.md").read_text()
    assert "| 1.25 (1.20 to 1.30) | 4000.0 | 5000.0 | 1.43 | 25.0% | 1.4 [1] |" in table
    assert "| resnet8 | computing | 2 | ZB | no | – |" in table
    assert (folder / "speed.png").read_bytes().startswith(b"\x89PNG")
    speed, shares = target.findings([measurement]).figures["speed"][""]
    bar = "resnet8, computing, K=2: computing 1.25, T_F + T_B / K 1.429, Somebody 1.4"
    assert bar in speed.description
    assert "stage 1: forward 25, backward 25, update 0, send 6.25, wait 43.75" in shares.description
    assert speed_ups([ours, other], "resnet8") == {2: 1.25}
    assert speed_ups([ours, other], "resnet110") == {}


def test_a_computing_speed_up_is_preferred_to_a_sleeping_one() -> None:
    row = {"workload": "m", "stages": 2, "contestant": "ddg", "smoke": False}
    computing = {**row, "how": "computing", "speedup": {"median": 1.5}}
    sleeping = {**row, "how": "sleeping", "speedup": {"median": 1.9}}
    for rows in ([computing, sleeping], [sleeping, computing]):
        assert speed_ups(rows, "m") == {2: 1.5}
    assert speed_ups([sleeping], "m") == {2: 1.9}
    assert speed_ups([{**computing, "smoke": True}], "m") == {}


def test_times_of_sleeping_stages_are_measured_on_the_planners_cuts() -> None:
    times = stage_times(SpeedLine(workload="resnet8", stages=(2,), how="sleeping", small=True))
    assert len(times["cuts"]) == 1 and len(times["stages"]) == 2
    assert all(stage["forward_s"] > 0 and stage["backward_s"] > 0 for stage in times["stages"])
    assert times["boundary_bytes"] % (16 * 4) == 0  # float32, 16 images


def test_memory(tmp_path: Path) -> None:
    target = write_target(tmp_path / "experiments", MEMORY, "paper-memory")
    assert isinstance(target, MemoryTarget)
    asked = request(tmp_path, page=tmp_path / "page.html")
    planned = asked.plan(target)
    for measurement, peaks in zip(planned, ([100], [90, 60], [50, 30]), strict=True):
        stages = [{"measured_bytes": peak << 20} for peak in peaks]
        totals = {"measured_bytes": sum(peaks) << 20, "predicted_bytes": 90 << 20}
        keep(measurement, {"cuts": [], **totals, "stages": stages})
    rows = reproduce(asked, quiet=True)["memory"]["rows"]
    assert [(r["num_stages"], r["variant"], r["over_one_stage"]) for r in rows] == [
        (1, "", 1.0), (2, "", 1.5), (2, "recompute", 0.8),
    ]  # fmt: skip
    table = (asked.folder(target) / "table.md").read_text()
    assert "| resnet8 | 4 | DDG | 2 | 150 | 90 | 1.67 | 1.50 | 90, 60 |" in table
    page = (tmp_path / "page.html").read_text()
    assert "resnet8, DDG recompute, K=2: stage 0 50, 1 30, formula 90" in page
    assert "It grows." in page
    found = json.loads(planned[1].path.read_text())  # on a GPU, the total alone is known
    keep(planned[1], {**found, "stages": [{"measured_bytes": None}] * 2})
    assert target.findings(planned).tables[0].rows[1][-1] == "–"


def test_a_memory_line_says_what_is_measured() -> None:
    line = MemoryLine(model="resnet8", stages=(2,), batch_size=3, options={"recompute": True})
    case = line.case(2)
    network, images, targets = case.make()
    assert network(images).shape == (3, 10) and len(targets) == 3
    assert case.method == DDG(recompute=True)


def test_cuts_are_those_of_the_file_or_balanced(tmp_path: Path) -> None:
    target = write_target(tmp_path, MEMORY, "paper-memory")
    assert isinstance(target, MemoryTarget)
    line = MemoryLine(model="resnet8", stages=(1, 2, 3))
    found = [target.cuts_of(line, k) for k in line.stages]
    assert found == [(), ("group2_block1",), None]


@pytest.mark.skipif(torch.cuda.device_count() >= 2, reason="there are GPUs")
@pytest.mark.parametrize(
    ("text", "old"),
    [(SPEED, "stages = [2] }"), (MEMORY, "batch_size = 4 }")],
    ids=["speed", "memory"],
)
def test_missing_gpus_are_told_and_the_rest_is_measured(
    text: str, old: str, tmp_path: Path
) -> None:
    text = text.replace(old, f'{old[:-2]}, device = "cuda" }}')
    target = write_target(tmp_path / "experiments", text, "paper-x")
    assert isinstance(target, MeasuredTarget)
    on_gpu, *others = sorted(
        target.plan("smoke", tmp_path, None), key=lambda one: one.settings["device"] == "cpu"
    )
    played = [replace(one, measure=lambda: {"seconds": 1.0}) for one in others]
    (failure,) = target.make([on_gpu, *played], None, None)
    assert failure.name == on_gpu.name and failure.message.startswith("too few GPUs (found: 0")
    assert not on_gpu.is_done() and all(one.is_done() for one in played)


def test_a_measurement_is_kept_and_another_one_is_not_taken_for_it(tmp_path: Path) -> None:
    calls = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"seconds": 1.0}

    one = Measurement(name="a", folder=tmp_path, settings={"stages": 2}, row={}, measure=measure)
    assert one.kept() is None and not one.is_done()
    for _ in range(2):
        SpeedTarget.make([one], None, None)
    assert len(calls) == 1 and one.is_done()
    assert json.loads((tmp_path / "measured" / "a.json").read_text())["seconds"] == 1.0
    with pytest.raises(ConfigError, match=r"other settings .*stages: 2 there, 3 here.*--output"):
        replace(one, settings={"stages": 3}).kept()
    one.path.write_text("{")
    with pytest.raises(DataError, match="a measurement is damaged"):
        one.kept()
