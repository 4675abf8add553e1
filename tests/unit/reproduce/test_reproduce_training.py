"""Rows, tables, figures and the page of a training target, from records alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from markup import parse
from targets import TRAINING, by_name, record, write_target

from delaygrad.records import EventLog
from delaygrad.reproduce import Reproduction, reproduce
from delaygrad.reproduce.grid import PlannedRun
from delaygrad.reproduce.training import TrainingTarget, projected_axis
from delaygrad.results.curves import Point
from delaygrad.training import load_config


def prepared(
    tmp_path: Path, text: str = TRAINING, **more: Any
) -> tuple[Reproduction, TrainingTarget, dict[str, PlannedRun]]:
    target = write_target(tmp_path / "experiments", text)
    assert isinstance(target, TrainingTarget)
    places = {"experiments": tmp_path / "experiments", "output": tmp_path / "out"}
    request = Reproduction(paper="paper", run=False, **{**places, **more})
    return request, target, by_name(list(request.plan(target)))


def test_seeds_are_put_together(tmp_path: Path) -> None:
    _, target, runs = prepared(tmp_path)
    record(runs["sgd-bp-k1-seed0"], [0.75, 0.70])
    record(runs["sgd-bp-k1-seed1"], [0.60, 0.74])
    record(runs["sgd-ddg-k2-seed0"], [0.60, 0.69], losses=(6.0, 3.0), samples_per_s=50.0)
    record(runs["sgd-ddg-k2-seed1"], [0.60, 0.70])
    record(runs["sgd-ddg-k3-seed0"], [0.60, 0.50])
    record(runs["sgd-ddg-k3-seed1"], [0.40, 0.30], diverged=True)
    results = target.findings(list(runs.values())).results
    rows = {row["series"]: row for row in results["rows"]}
    assert list(rows) == [
        "sgd-bp-k1", "adam-bp-k1", "sgd-ddg-k2", "sgd-ddg-k3", "sgd-ddg-slack1-k3",
    ]  # fmt: skip
    bp, two, three = (rows[f"sgd-{name}"] for name in ("bp-k1", "ddg-k2", "ddg-k3"))
    assert bp["final_accuracy"] == pytest.approx({"mean": 72.0, "sd": math.sqrt(8), "n": 2})
    assert bp["best_accuracy"]["mean"] == pytest.approx((75 + 74) / 2)
    assert bp["minus_bp"] is None
    # Seed by seed: 69 - 70 = -1 and 70 - 74 = -4.
    assert two["minus_bp"] == pytest.approx({"mean": -2.5, "sd": math.sqrt(4.5), "n": 2})
    assert two["bp_sd"] == pytest.approx(math.sqrt(8))
    assert (two["planned"], two["done"], two["diverged"]) == (2, 2, 0)
    assert (three["done"], three["diverged"]) == (2, 1)
    for name, mean in (("final_accuracy", 50.0), ("best_accuracy", 60.0), ("minus_bp", -20.0)):
        assert three[name] == {"mean": pytest.approx(mean), "sd": None, "n": 1}
    nothing = rows["sgd-ddg-slack1-k3"]
    assert (nothing["planned"], nothing["done"], nothing["final_accuracy"]) == (1, 0, None)
    assert rows["adam-bp-k1"]["done"] == 0

    found = {run["name"]: run for run in results["runs"]}
    one, lost = found["sgd-ddg-k2-seed0"], found["sgd-ddg-k3-seed1"]
    assert (one["final_accuracy"], one["best_accuracy"], one["best_epoch"]) == (69.0, 69.0, 2.0)
    assert one["train_loss"] == pytest.approx((6.0 / 2 + 3.0 / 2) / 2)  # of the second epoch
    assert one["epoch_s"] == pytest.approx(10 * 100 / 50.0)  # 10 batches of 100 samples
    assert (one["epochs"], one["diverged_at_epoch"], one["series"]) == (2.0, None, "sgd-ddg-k2")
    assert (lost["diverged_at_epoch"], lost["best_accuracy"]) == (2.0, 40.0)
    assert lost["final_accuracy"] is lost["train_loss"] is lost["test_loss"] is None


def test_a_target_leaves_table_figure_results_and_a_page(tmp_path: Path) -> None:
    text = TRAINING.replace("[settings]", 'summary = "DDG <wins>."\n[settings]', 1)
    request, target, runs = prepared(tmp_path, text, page=tmp_path / "page.html")
    record(runs["sgd-bp-k1-seed0"], [0.7, 0.8])
    record(runs["sgd-bp-k1-seed1"], [0.7, 0.84])
    record(runs["sgd-ddg-k2-seed0"], [0.7, 0.79])
    record(runs["sgd-ddg-k2-seed1"], [0.7, 0.6], diverged=True)
    results = reproduce(request, quiet=True)["small"]
    folder = request.folder(target)
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "table.md").read_text()
    assert "delaygrad reproduce paper --target small --scale smoke" in table
    assert "| BP (seeds 0, 1) | 82.00 ± 2.83 | – | 82.00 ± 2.83 |" in table
    assert "| DDG K=2 (seeds 0, 1; 1 diverged) | 79.00 | −1.00 | 79.00 |" in table
    assert "| 91.5 [1] |" in table
    assert "[1] Somebody: their table 1 (read)" in table
    assert "| DDG slack1 K=3 | not begun | – |" in table

    text = (tmp_path / "page.html").read_text()
    assert str(tmp_path) not in json.dumps(results) + table + text
    page = parse(text)
    headings = [element.text for element in page.all("h1", "h2", "h3")]
    assert headings[:2] == ["paper, reproduced", "A small comparison (smoke)"]
    assert "Learning curves" in headings and headings.count("Accuracy") == 1
    rows = [[cell.text for cell in row.all("td", "th")] for row in page.all("tr")]
    assert ["79.00", "−1.00", "79.00"] in [row[1:4] for row in rows]
    assert "DDG <wins>." in page.text and "[1] Somebody: their table 1 (read)" in page.text
    told = [str(svg.attributes["aria-label"]) for svg in page.all("svg")]
    assert (
        "Line plot: test accuracy (%), against epoch. BP ends at 82; DDG K=2 (1 of 2 diverged) "
        "ends at 79"
    ) in told


def test_runs_that_have_not_begun_have_a_table_and_no_figure(tmp_path: Path) -> None:
    request, target, runs = prepared(tmp_path)
    assert reproduce(request, quiet=True)["small"]["runs"] == []
    folder = request.folder(target)
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "table.md"]
    found = target.findings(list(runs.values()))
    assert found.sections == () and found.is_empty


def test_a_recalled_number_is_marked(tmp_path: Path) -> None:
    request, target, _ = prepared(tmp_path, TRAINING.replace('"read"', '"recalled"'))
    reproduce(request, quiet=True)
    assert "| 91.5 [1, recalled] |" in (request.folder(target) / "table.md").read_text()


def test_there_is_a_figure_for_each_problem_that_has_begun(tmp_path: Path) -> None:
    problems = "".join(f'\n[problems.{name}]\ntitle = "{name}"\n' for name in ("one", "two", "no"))
    _, target, runs = prepared(tmp_path, TRAINING + problems)
    for name in ("one", "two"):
        record(runs[f"{name}-sgd-bp-k1-seed0"], [0.7, 0.8])
    assert list(target.findings(list(runs.values())).figures) == ["curves-one", "curves-two"]


def test_direction(tmp_path: Path) -> None:
    text = TRAINING.replace("[settings]", 'figure = "direction"\n[settings]')
    request, target, runs = prepared(tmp_path, text)
    log = EventLog(record(runs["sgd-ddg-k2-seed0"], [0.7, 0.8]) / "records.jsonl")
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
    first, second = reproduce(request, quiet=True)["small"]["direction"]
    assert (first["stage"], first["delay"], first["probes"]) == (0, 1, 3)
    assert (first["first"], first["least"], first["sufficient_direction"]) == (-0.5, -0.5, 0.5)
    assert first["positive_share"] == pytest.approx(2 / 3)
    assert (first["cosine"], first["staleness_ratio"]) == (0.5, 2.0)
    assert (second["delay"], second["positive_share"]) == (0, 1.0)
    folder = request.folder(target)
    assert [path.name for path in folder.glob("*.png")] == ["direction.png"]
    assert (
        "| sgd-ddg-k2-seed0 | 0 | 1 | 3 | 0.500 | -0.500 | -0.500 | 0.500 | 2.000 | 67% |"
        in (folder / "table.md").read_text()
    )


def test_time_is_projected_where_the_speed_up_is_known(tmp_path: Path) -> None:
    _, target, runs = prepared(tmp_path)
    for name, samples_per_s in (("bp-k1", 100.0), ("ddg-k2", 80.0), ("ddg-k3", 50.0)):
        record(runs[f"sgd-{name}-seed0"], [0.5, 0.6], samples_per_s=samples_per_s)
    groups = list(target.groups(list(runs.values())).values())
    bp, _, two, three = groups[:4]
    rows = [
        {
            "workload": "mlp", "how": "computing", "contestant": "ddg", "stages": 2,
            "smoke": False, "speedup": {"median": 1.6},
        }
    ]  # fmt: skip
    axis = projected_axis(groups, rows)
    assert axis is not None and "K processes" in axis.label
    at = Point(epoch=2.0, elapsed_s=0.0, value=0.0)
    assert [axis.across(group, at) for group in (bp, two, three)] == [20.0, 12.5, None]
    assert projected_axis(groups, []) is None  # the time of one process is drawn
    assert projected_axis(groups[2:], rows) is None


def test_published_records_are_scrubbed(tmp_path: Path) -> None:
    request, target, runs = prepared(tmp_path, publish=True)
    folder = request.folder(target)
    at = {"data": "cifar10", "data_dir": "/elsewhere/cifar"}
    finished = record(runs["sgd-bp-k1-seed0"], [0.7], **at)
    record(runs["sgd-ddg-k2-seed0"], [0.7], diverged=True)
    (record(runs["sgd-ddg-k3-seed0"], [0.7]) / "summary.json").unlink()  # active
    for name in ("model.safetensors", "runner.log"):
        (finished / name).write_text(str(tmp_path))
    (folder / "measured").mkdir()
    (folder / "measured" / "case.json").write_text(
        '{"contest": {"variables": {"LD_PRELOAD": "/elsewhere/lib.so"}, "rounds": 5}}'
    )
    goal = target.folder / "records" / "smoke"
    (goal / "old-run").mkdir(parents=True)

    reproduce(request, quiet=True)

    assert sorted(path.name for path in goal.iterdir()) == [
        "curves.png", "measured", "results.json", "sgd-bp-k1-seed0", "sgd-ddg-k2-seed0", "table.md",
    ]  # fmt: skip
    files = sorted(p.name for p in (goal / "sgd-bp-k1-seed0").iterdir())
    assert files == ["config.json", "records.jsonl", "summary.json"]
    files = sorted(p.name for p in (goal / "sgd-ddg-k2-seed0").iterdir())
    assert files == ["config.json", "records.jsonl"]
    for path in goal.rglob("*.[jm]*"):
        for secret in (str(tmp_path), "/elsewhere", "somebodys-laptop"):
            assert secret not in path.read_text(), path
    config = load_config(goal / "sgd-bp-k1-seed0" / "config.json")
    assert config.data_dir == Path("data/cifar10")
    assert config.run_dir == Path("experiments/paper-small/records/smoke/sgd-bp-k1-seed0")
    summary = json.loads((goal / "sgd-bp-k1-seed0" / "summary.json").read_text())
    assert summary["run_dir"] == str(config.run_dir) and "curves" not in summary
    environment = json.loads((goal / "sgd-bp-k1-seed0" / "config.json").read_text())["environment"]
    assert environment == {"torch": "2.13.0", "system": "Linux"}
