"""The programs under examples/ run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torchrun_ranks import run_program

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_two_processes_learn_to_read_digits(tmp_path: Path) -> None:
    told, _ = run_program(2, EXAMPLES / "two_processes.py", cwd=tmp_path)  # where it saves
    accuracy = re.findall(r"accuracy on 297 digits held out: ([\d.]+)%", told)
    assert len(accuracy) == 1 and float(accuracy[0]) > 88  # 91.6 to 92.9, four seeds
    assert f"accuracy of the whole model, loaded: {accuracy[0]}%" in told
    saved = {path.name for path in tmp_path.rglob("*.pt")}
    assert saved == {"two_processes.pt"}


@pytest.mark.timing
def test_two_stages_take_no_longer_than_under_1f1b() -> None:
    told, _ = run_program(2, EXAMPLES / "instead_of_1f1b.py")
    ratios = re.findall(r"ms, ([\d.]+) times the throughput", told)
    # The last is 1.6 where nothing else runs, 1 if overlap is lost.
    assert len(ratios) == 3 and float(ratios[2]) > 0.75
