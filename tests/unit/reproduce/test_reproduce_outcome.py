"""Tables and figures, from records alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from targets import TRAINING, by_name, record, write_target

from delaygrad.records import EventLog
from delaygrad.reproduce.outcome import memory_outcome, speed_outcome, training_outcome
from delaygrad.reproduce.plan import PlannedRun, planned_runs
from delaygrad.reproduce.target import Target
from delaygrad.reproduce.training_table import training_tables

PNG = b"\x89PNG"
SPEED_ROW: dict[str, Any] = {
    "workload": "mlp", "how": "computing", "stages": 2, "contestant": "ddg", "title": "DDG",
    "speedup": {"median": 1.6, "quartiles": [1.5, 1.7]}, "iteration_s": 0.5, "baseline_s": 0.8,
    "stage_seconds": [
        {"forward": 0.1, "backward": 0.2, "update": 0.01, "send": 0.01, "wait": 0.1},
        {"forward": 0.1, "backward": 0.3, "update": 0.01, "send": 0.02, "wait": 0.03},
    ],
    "communication_share": 0.1, "paper_rule": 1.5, "smoke": False,
}  # fmt: skip


def prepared(tmp_path: Path, text: str = TRAINING) -> tuple[Target, list[PlannedRun]]:
    target = write_target(tmp_path / "experiments", text)
    return target, planned_runs(target, "smoke", tmp_path / "out")


def test_training_leaves_table_figure_and_results(tmp_path: Path) -> None:
    target, runs = prepared(tmp_path)
    named = by_name(runs)
    record(named["sgd-bp-k1-seed0"], [0.7, 0.8])
    record(named["sgd-bp-k1-seed1"], [0.7, 0.84])
    record(named["sgd-ddg-k2-seed0"], [0.7, 0.79])
    record(named["sgd-ddg-k2-seed1"], [0.7], diverged=True)
    results = training_outcome(target, "smoke", runs, tmp_path / "out", [SPEED_ROW])
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(PNG)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "delaygrad reproduce paper --target small --scale smoke" in table
    assert "| BP | 1 | 2 | 82.00 ± 2.83 | 82.00 ± 2.83 | - | - |" in table
    assert "| DDG | 2 | 2 (1 diverged) | 79.00 | 79.00 | -1.00 | - |" in table
    assert "| 91.5 [1] |" in table
    assert "[1] Somebody: their table 1 (read)" in table
    assert "| DDG slack1 | 3 | 0 of 1 | - |" in table
    assert str(tmp_path) not in json.dumps(results)


@pytest.mark.parametrize(("ddg", "verdict"), [(0.81, "yes"), (0.7, "no")])
def test_whether_a_gap_is_within_the_seeds_is_said_of_three(
    tmp_path: Path, ddg: float, verdict: str
) -> None:
    target, runs = prepared(tmp_path, TRAINING.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    named = by_name(runs)
    for seed, accuracy in enumerate((0.8, 0.82, 0.84)):
        record(named[f"sgd-bp-k1-seed{seed}"], [accuracy])
        record(named[f"sgd-ddg-k2-seed{seed}"], [ddg])
    training_outcome(target, "smoke", runs, tmp_path / "out", [])
    assert f" | {verdict} |" in (tmp_path / "out" / "table.md").read_text()


def test_a_recalled_number_is_marked(tmp_path: Path) -> None:
    target, runs = prepared(tmp_path, TRAINING.replace('mark = "read"', 'mark = "recalled"'))
    results = training_outcome(target, "smoke", runs, tmp_path / "out", [])
    assert "| 91.5 [1, recalled] |" in training_tables(results, target.content).markdown()  # type: ignore[arg-type]


def test_there_is_a_figure_for_each_problem(tmp_path: Path) -> None:
    problems = '\n[problems.one]\ntitle = "One"\n[problems.two]\ntitle = "Two"\n'
    target, runs = prepared(tmp_path, TRAINING + problems)
    record(by_name(runs)["one-sgd-bp-k1-seed0"], [0.7, 0.8])
    training_outcome(target, "smoke", runs, tmp_path / "out", [])
    figures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert figures == ["curves-one.png", "curves-two.png"]


def test_direction(tmp_path: Path) -> None:
    target, runs = prepared(
        tmp_path, TRAINING.replace("[settings]", 'figure = "direction"\n[settings]')
    )
    run = by_name(runs)["sgd-ddg-k2-seed0"]
    folder = record(run, [0.7, 0.8])
    log = EventLog(folder / "records.jsonl")
    for iteration, constant in ((0, -0.5), (10, 0.5), (20, 1.5)):
        stages = [
            {
                "stage": k, "delay": 1 - k, "sufficient_direction": constant if k == 0 else 1.0,
                "cosine": 0.5, "staleness_ratio": 2.0,
            }
            for k in range(2)
        ]  # fmt: skip
        log.write("direction", iteration=iteration, epoch=iteration / 10, stages=stages)
    log.close()
    results = training_outcome(target, "smoke", runs, tmp_path / "out", [])
    first, second = results["direction"]
    assert (first["stage"], first["delay"], first["probes"]) == (0, 1, 3)
    assert (first["first"], first["least"], first["sufficient_direction"]) == (-0.5, -0.5, 0.5)
    assert first["positive_share"] == pytest.approx(2 / 3)
    assert (first["cosine"], first["staleness_ratio"]) == (0.5, 2.0)
    assert (second["delay"], second["positive_share"]) == (0, 1.0)
    assert (tmp_path / "out" / "direction.png").read_bytes().startswith(PNG)
    assert (
        "| sgd-ddg-k2-seed0 | 0 | 1 | 3 | 0.500 | -0.500 | -0.500 | 67% | 0.500 | 2.000 |"
        in (tmp_path / "out" / "table.md").read_text()
    )


def test_speed(tmp_path: Path) -> None:
    text = """
title = "Speed"
kind = "speed"
reference = "nobody"
[scales.smoke]
about = "tiny"
contests = [{ workload = "mlp", how = "computing", stages = [2] }]
[[published]]
quantity = "speedup"
stages = 2
value = 1.4
who = "Somebody"
mark = "read"
source = "their figure"
"""
    target = write_target(tmp_path / "experiments", text, "paper-speed")
    lacking = {**SPEED_ROW, "stages": 4, "does_not_run": "needs 4 GPUs (found: 1)"}
    del lacking["speedup"]
    speed_outcome(target, "smoke", [SPEED_ROW, lacking], tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    (row,) = [line for line in table.splitlines() if line.startswith("| mlp | computing | 2 |")]
    assert row.endswith("| 1.60 (1.50 to 1.70) | 500.0 | 800.0 | 1.50 | 10.0% | 1.4 [1] |")
    assert "| mlp | computing | 4 | DDG | needs 4 GPUs (found: 1) | - |" in table
    assert (tmp_path / "out" / "speed.png").read_bytes().startswith(PNG)


def test_memory(tmp_path: Path) -> None:
    text = """
title = "Memory"
kind = "memory"
reference = "nobody"
[scales.smoke]
about = "tiny"
lines = [{ model = "resnet8", stages = [1, 2] }]
"""
    target = write_target(tmp_path / "experiments", text, "paper-memory")
    row = {
        "model": "resnet8", "batch_size": 8, "method": "ddg", "variant": "", "device": "cpu",
        "num_stages": 2, "measured_bytes": 3 << 20, "predicted_bytes": 2 << 20, "cuts": ["x"],
        "stages": [{"measured_bytes": 2 << 20}, {"measured_bytes": 1 << 20}],
        "over_one_stage": 1.5,
    }  # fmt: skip
    on_gpu = {**row, "stages": [{"measured_bytes": None}] * 2, "device": "cuda"}
    memory_outcome(target, "smoke", [row, on_gpu], tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| resnet8 | 8 | DDG | 2 | 3 | 2 | 1.50 | 1.50 | 2, 1 |" in table
    assert "| resnet8 | 8 | DDG | 2 | 3 | 2 | 1.50 | 1.50 | - |" in table
    assert (tmp_path / "out" / "memory.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("kind", ["speed", "memory"])
def test_nothing_measured_yet_is_drawn_too(kind: str, tmp_path: Path) -> None:
    lists = {"speed": "contests = []", "memory": "lines = []"}
    text = (
        f'title = "T"\nkind = "{kind}"\nreference = "R"\n[scales.smoke]\nabout = "a"\n{lists[kind]}'
    )
    target = write_target(tmp_path / "experiments", text, f"paper-{kind}")
    outcome = {"speed": speed_outcome, "memory": memory_outcome}[kind]
    assert outcome(target, "smoke", [], tmp_path / "out")["rows"] == []
