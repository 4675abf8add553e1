"""The experiments of the repository: what they would run is sound, what they quote has a source."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from delaygrad import models
from delaygrad.partition import layer_names, split
from delaygrad.reproduce.grid import PlannedRun
from delaygrad.reproduce.paper import load_target, put_together
from delaygrad.reproduce.target import Target
from delaygrad.reproduce.training import TrainingTarget
from delaygrad.training import load_config

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("experiments/*/target.toml"))
SAMPLES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}


def target_of(folder: Path) -> Target:
    return load_target(folder, folder.name.partition("-")[0])


def all_runs(target: Target) -> dict[str, list[PlannedRun]]:
    if not isinstance(target, TrainingTarget):
        return {}
    data = Path("data")
    return {scale: target.plan(scale, data, data) for scale in target.scales}


def test_the_experiments_are_where_the_checks_look() -> None:
    assert len(FOLDERS) >= 5


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_planned_run_is_sound(folder: Path) -> None:
    target = target_of(folder)
    assert {"smoke", "cpu", "gpu"} <= target.scales.keys()
    networks = set()
    for runs in all_runs(target).values():
        for run in runs:
            config = run.config
            config.check()
            networks.add((config.model.name, config.data.name, config.run.cuts))
    for model, data, cuts in networks:
        network = models.build(model, SAMPLES[data], 100 if data == "cifar100" else 10)
        assert len(split(network, len(cuts) + 1, cuts=cuts)) == len(cuts) + 1


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_readme_says_how_and_quotes_what_the_target_quotes(folder: Path) -> None:
    target = target_of(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"delaygrad reproduce {target.paper} --target {target.name}" in text
    for number in target.published:
        assert str(number.value) in text or f"{number.value:.2f}" in text, number
    if any(number.mark == "recalled" for number in target.published):
        assert "recalled" in text


def cuts_by_blocks(model: str, num_stages: int) -> tuple[str, ...]:
    """Boundary b after the nearest whole number to n b / K blocks, the smaller of two as near."""
    blocks = [n for n in layer_names(models.build(model, (3, 32, 32), 10)) if "block" in n]
    blocks = list(dict.fromkeys(name.split(".")[0] for name in blocks))
    exact = [len(blocks) * b / num_stages for b in range(1, num_stages)]
    nearest = [min(range(len(blocks)), key=lambda i: (abs(i - x), i)) for x in exact]
    return tuple(blocks[index] for index in nearest)


@pytest.mark.parametrize("name", ["huo2018-accuracy", "huo2018-memory"])
def test_cuts_are_those_of_the_stated_rule(name: str) -> None:
    content = target_of(ROOT / "experiments" / name)
    for model, by_stages in content.cuts.items():  # type: ignore[union-attr]
        for stages, cuts in by_stages.items():
            assert cuts == cuts_by_blocks(model, int(stages)), (model, stages)


RECORDS = sorted(path.parent for path in ROOT.glob("experiments/*/records/*/results.json"))


@pytest.mark.parametrize("records", RECORDS, ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_published_results_follow_from_the_published_records(records: Path, tmp_path: Path) -> None:
    target, scale = target_of(records.parents[1]), records.name
    results = json.loads((records / "results.json").read_text(encoding="utf-8"))
    table = (records / "table.md").read_text(encoding="utf-8")
    assert not re.search(r'["\s](/(work|tmp|home|root)/|[A-Z]:\\\\)', json.dumps(results) + table)
    findings = replace(target.findings(target.plan(scale, records, None)), figures={})
    again = put_together(target, scale, tmp_path, findings)
    assert json.loads(json.dumps(again)) == results  # every number of every kind of target
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == table


def test_configurations_of_committed_records_are_read() -> None:
    found = [path for folder in FOLDERS for path in folder.glob("records/**/config.json")]
    assert len(found) >= 40
    for path in found:
        recorded = json.loads(path.read_text(encoding="utf-8"))["config"]
        config = load_config(path)
        config.check()
        assert config.to_json().items() <= {**config.to_json(), **recorded}.items()
