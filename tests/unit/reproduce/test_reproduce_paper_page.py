"""The page of a paper has every target's numbers, what was found, and the runs' own report."""

from __future__ import annotations

from pathlib import Path

from markup import parse
from targets import TRAINING, by_name, record, write_target

from delaygrad.report import render_page
from delaygrad.reproduce.outcome import memory_outcome, training_outcome
from delaygrad.reproduce.paper_page import paper_page, target_section
from delaygrad.reproduce.plan import planned_runs

MEMORY = """
title = "Memory"
kind = "memory"
reference = "nobody"
reading = "It grows."
[scales.smoke]
about = "small"
lines = [{ model = "resnet8", stages = [1], batch_size = 4 }]
"""
MEMORY_ROW = {
    "model": "resnet8", "batch_size": 4, "method": "bp", "variant": "", "num_stages": 1,
    "measured_bytes": 3 * 2**20, "predicted_bytes": 2 * 2**20, "over_one_stage": 1.0,
    "device": "cpu",
    "stages": [{"measured_bytes": 3 * 2**20, "predicted_bytes": 2 * 2**20}],
}  # fmt: skip


def test_page_of_a_training_target(tmp_path: Path) -> None:
    text = TRAINING.replace("[settings]", 'reading = "DDG <wins>."\n[settings]', 1)
    target = write_target(tmp_path / "experiments", text)
    runs = planned_runs(target, "smoke", tmp_path / "out")
    named = by_name(runs)
    record(named["sgd-bp-k1-seed0"], [0.7, 0.8])
    record(named["sgd-ddg-k2-seed0"], [0.7, 0.79])
    record(named["sgd-ddg-k2-seed1"], [0.7], diverged=True)
    results = training_outcome(target, "smoke", runs, tmp_path / "out", [])
    section = target_section(target, results, tmp_path / "out", runs)
    text = render_page(paper_page("paper", [section]))
    page = parse(text)
    headings = [element.text for element in page.all("h1", "h2", "h3")]
    assert headings[:2] == ["paper, reproduced", "A small comparison (smoke)"]
    assert "Learning curves" in headings and "Accuracy" not in headings
    rows = [[cell.text for cell in row.all("td", "th")] for row in page.all("tr")]
    assert ["DDG", "2", "2 (1 diverged)", "79.00", "79.00", "-1.00"] in [row[:6] for row in rows]
    assert "91.5 [1]" in {row[-1] for row in rows if row}
    assert "DDG <wins>." in page.text and "[1] Somebody: their table 1 (read)" in page.text
    assert str(tmp_path) not in text


def test_page_of_what_does_not_train_has_its_figures(tmp_path: Path) -> None:
    target = write_target(tmp_path / "experiments", MEMORY, "paper-memory")
    results = memory_outcome(target, "smoke", [MEMORY_ROW], tmp_path / "out")
    section = target_section(target, results, tmp_path / "out", [])
    page = parse(render_page(paper_page("paper", [section])))
    (image,) = page.all("img")
    assert str(image.attributes["src"]).startswith("data:image/png;base64,")
    assert image.attributes["alt"] == "Memory (smoke)"
    assert "1.50" in page.text and "It grows." in page.text


def test_page_of_runs_that_have_not_begun(tmp_path: Path) -> None:
    target = write_target(tmp_path / "experiments")
    runs = planned_runs(target, "smoke", tmp_path / "out")
    results = training_outcome(target, "smoke", runs, tmp_path / "out", [])
    section = target_section(target, results, tmp_path / "out", runs)
    assert section.sections == ()
    assert "0 of 2" in render_page(paper_page("paper", [section]))
