"""The curves are the records, averaged as the caption says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from recorded_runs import PER_EPOCH, record_run

from delaygrad.report import RunGroup, group_runs, read_run
from delaygrad.report.learning_curves import MOST_POINTS, curves_section, thinned
from delaygrad.report.page import Figure, Svg


def groups_of(*folders: Path) -> tuple[RunGroup, ...]:
    return group_runs([read_run(folder) for folder in folders])


def figures(groups: tuple[RunGroup, ...]) -> list[Figure]:
    section = curves_section(groups)
    assert section is not None
    found = [block for block in section.blocks if isinstance(block, Figure)]
    assert len(found) == 2
    return found


def panels(figure: Figure) -> dict[str, Element]:
    """The drawings by their title."""
    found = {}
    for picture in figure.pictures:
        assert isinstance(picture, Svg)
        element = ElementTree.fromstring(picture.markup)
        (title,) = [t.text for t in element.iter("text") if t.get("class") == "title"]
        found[str(title)] = element
    return found


def titles(element: Element) -> list[str]:
    return [str(title.text) for title in element.iter("title")]


def test_points_are_those_of_the_records(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", accuracy=0.8)
    by_epoch, by_time = map(panels, figures(groups_of(folder)))
    assert list(by_epoch) == ["train loss (nats)", "test loss (nats)", "test accuracy (%)"]
    assert list(by_time) == list(by_epoch)
    for element, unit in ((by_epoch, "epoch"), (by_time, "elapsed time (s)")):
        told = titles(element["test accuracy (%)"])[1:]
        scale = 1 if unit == "epoch" else 2 * PER_EPOCH
        assert told == [f"DDG K=1: {20 * e} at {scale * e} ({unit})" for e in (1, 2, 3, 4)]
    told = titles(by_epoch["test loss (nats)"])[1:]
    assert told[0] == f"DDG K=1: {2.5 * math.exp(-1) + 0.1:.5g} at 1 (epoch)"


def test_bold_is_the_mean_of_finished_runs_and_thin_is_each(tmp_path: Path) -> None:
    groups = groups_of(
        record_run(tmp_path / "a", seed=0, accuracy=0.8),
        record_run(tmp_path / "b", seed=1, accuracy=0.6),
        record_run(tmp_path / "c", seed=2, accuracy=0.1, until=20, diverged=True),
    )
    figure = figures(groups)[0]
    accuracy = panels(figure)["test accuracy (%)"]
    kinds = [p.get("class") for p in accuracy.iter("path") if "line" in p.get("class", "")]
    assert kinds == ["line faint"] * 3 + ["line"]
    told = titles(accuracy)
    mean = "DDG K=1, mean of 2 runs"
    assert told[-5:] == [mean, *(f"{mean}: {17.5 * e:g} at {e} (epoch)" for e in (1, 2, 3, 4))]
    assert "DDG K=1, c: diverged at iteration 21 (loss nan)" in told
    assert "A cross: the run diverged there." in figure.caption
    assert "mean of a group's finished runs" in figure.caption
    assert [(key.label, key.style) for key in figure.legend] == [("DDG K=1", 1)]


def test_where_none_has_finished_the_mean_goes_as_far_as_all(tmp_path: Path) -> None:
    groups = groups_of(
        record_run(tmp_path / "a", seed=0, until=20), record_run(tmp_path / "b", seed=1, until=30)
    )
    told = titles(panels(figures(groups)[0])["test accuracy (%)"])
    assert [t for t in told if "mean" in t and " at " in t][-1].endswith("at 2 (epoch)")


def test_validation_takes_the_place_of_a_lone_test(tmp_path: Path) -> None:
    figure = figures(groups_of(record_run(tmp_path / "a", split="validation")))[0]
    assert list(panels(figure)) == [
        "train loss (nats)", "validation loss (nats)", "validation accuracy (%)",
    ]  # fmt: skip


def test_long_runs_are_averaged_and_it_is_said(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", until=5)
    count = 2 * MOST_POINTS + 1
    events = [
        {"event": "training", "iteration": i, "epoch": i / 10, "loss": 1.0, "elapsed_s": i}
        for i in range(count)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    figure = figures(groups_of(folder))[0]
    assert "means of up to 3 consecutive records" in figure.caption
    (path,) = [
        p.get("d", "") for p in panels(figure)["train loss (nats)"].iter("path")
        if p.get("class") == "line"
    ]  # fmt: skip
    assert path.count("L") + path.count("M") == math.ceil(count / 3)
    assert thinned([(1.0, 1.0)] * MOST_POINTS) == ((1.0, 1.0),) * MOST_POINTS


@pytest.mark.parametrize(
    ("runtime", "stages", "said"),
    [("local", 2, True), ("distributed", 2, False), ("local", 1, False)],
)
def test_stages_that_took_turns_are_mentioned(
    runtime: str, stages: int, said: bool, tmp_path: Path
) -> None:
    folder = record_run(tmp_path / "a", runtime=runtime, stages=stages)
    by_time = figures(groups_of(folder))[1]
    assert ("take turns in one process" in by_time.caption) is said


def test_each_recipe_has_its_own_figures(tmp_path: Path) -> None:
    folders = [
        record_run(tmp_path / f"{method}-{optimizer}", method=method, optimizer=optimizer)
        for optimizer in ("sgd", "adam")
        for method in ("bp", "ddg")
    ]
    section = curves_section(groups_of(*folders))
    assert section is not None and section.blocks == ()
    assert [part.heading for part in section.sections] == ["sgd", "adam"]
    for part in section.sections:
        for figure in part.blocks:
            assert isinstance(figure, Figure)
            assert [(key.label, key.style) for key in figure.legend] == [("BP", 0), ("DDG K=1", 1)]


def test_no_records_no_section(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "a", until=5)
    (folder / "records.jsonl").unlink()
    assert curves_section(groups_of(folder)) is None
