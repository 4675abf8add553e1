"""Rows of speed, from contests that are on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from delaygrad.errors import ConfigError
from delaygrad.reproduce.measured_case import kept_or_measured
from delaygrad.reproduce.speed import measure_speed, stage_times
from delaygrad.reproduce.speed_target import Contest, SpeedScale
from delaygrad.reproduce.speed_up import rows_on_record, speed_ups

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


def scale(**settings: Any) -> SpeedScale:
    contest = Contest(workload="resnet8", stages=(2,), how="computing", **settings)
    return SpeedScale(about="", contests=(contest,))


def test_rows_say_what_the_slowest_stage_spends_on_communication(tmp_path: Path) -> None:
    case = next(scale().cases())
    kept_or_measured(tmp_path, case.name, case.settings(), lambda: {"contest": CONTEST})
    ours, other = measure_speed(scale(), tmp_path, print, new=False)
    assert (ours["stages"], ours["iteration_s"], ours["baseline_s"]) == (2, 4.0, 5.0)
    assert ours["communication_share"] == (0.25 + 0.75) / 4
    assert ours["paper_rule"] == pytest.approx(5 / (2 + 3 / 2), abs=1e-4)
    assert other["does_not_run"] == "no"
    assert speed_ups([ours, other], "resnet8")[2].value == 1.25
    assert speed_ups([ours, other], "resnet110") == {}


def test_a_computing_speed_up_is_preferred_to_a_sleeping_one() -> None:
    row = {"workload": "m", "stages": 2, "contestant": "ddg", "smoke": False}
    computing = {**row, "how": "computing", "speedup": {"median": 1.5}}
    sleeping = {**row, "how": "sleeping", "speedup": {"median": 1.9}}
    for rows in ([computing, sleeping], [sleeping, computing]):
        assert speed_ups(rows, "m")[2].value == 1.5
    assert speed_ups([sleeping], "m")[2].how == "with sleeping stages"
    assert speed_ups([{**computing, "smoke": True}], "m") == {}


def test_nothing_is_measured_when_nothing_shall_be(tmp_path: Path) -> None:
    assert measure_speed(scale(), tmp_path, print, new=False) == []
    assert rows_on_record(tmp_path / "results.json") == []


@pytest.mark.skipif(torch.cuda.device_count() >= 2, reason="there are GPUs")
def test_too_few_gpus_are_told(tmp_path: Path) -> None:
    (row,) = measure_speed(scale(device="cuda"), tmp_path, print)
    assert row["does_not_run"].startswith("needs 2 GPUs (found: ")


def test_times_of_sleeping_stages_are_measured_on_the_planners_cuts() -> None:
    contest = Contest(workload="resnet8", stages=(2,), how="sleeping", small=True)
    times = stage_times(next(SpeedScale(about="", contests=(contest,)).cases()))
    assert len(times["cuts"]) == 1
    assert len(times["stages"]) == 2
    assert all(stage["forward_s"] > 0 and stage["backward_s"] > 0 for stage in times["stages"])
    assert times["boundary_bytes"] % (16 * 4) == 0  # float32, 16 images


def test_a_measurement_is_kept_and_another_one_is_not_taken_for_it(tmp_path: Path) -> None:
    calls = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"seconds": 1.0}

    first = kept_or_measured(tmp_path, "case", {"stages": 2}, measure)
    assert first == kept_or_measured(tmp_path, "case", {"stages": 2}, measure)
    assert len(calls) == 1
    assert json.loads((tmp_path / "measured" / "case.json").read_text())["seconds"] == 1.0
    with pytest.raises(ConfigError, match=r"other settings .*stages: 2 there, 3 here.*--output"):
        kept_or_measured(tmp_path, "case", {"stages": 3}, measure)
    assert kept_or_measured(tmp_path, "another", {}, None) is None
