from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from delaygrad.report.contest import draw_contest


def results(baseline: str | None) -> dict[str, Any]:
    def ran(name: str, family: str, ratio: float) -> dict[str, Any]:
        spread = {"median": ratio, "quartiles": [0.9 * ratio, 1.1 * ratio]}
        return {
            "name": name,
            "title": name.upper(),
            "family": family,
            "iteration": spread,
            "throughput_against": {} if baseline is None else {"baseline": spread},
        }

    return {
        "description": "a network",
        "num_stages": 2,
        "link": "loopback",
        "rounds": 5,
        "compared_with": {"baseline": baseline},
        "contestants": [
            ran("bp", "bp", 1.0),
            {"name": "zbv-m4", "title": "ZBV", "family": "pipeline", "does_not_run": "no"},
            ran("ddg", "ddg", 1.9),
        ],
    }


@pytest.mark.parametrize("baseline", ["bp", None])
def test_figure_has_a_bar_for_everyone_who_ran(baseline: str | None, tmp_path: Path) -> None:
    draw_contest(results(baseline), tmp_path / "contest.png")
    image = matplotlib.image.imread(tmp_path / "contest.png")
    rows_of = {colour: _rows(image, colour) for colour in ("999999", "009E73", "E69F00")}
    assert rows_of["999999"] > 0 and rows_of["009E73"] > 0
    assert rows_of["E69F00"] == 0  # the one that does not run


def _rows(image: Any, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    near = abs(image[:, :, :3] - wanted).max(axis=2) < 0.01
    return int((near.sum(axis=1) > 100).sum())
