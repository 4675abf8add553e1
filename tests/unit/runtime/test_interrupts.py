"""A loop that is interrupted anywhere goes on exactly, or says that it needs its checkpoint."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from delaygrad.runtime.pipeline import Pipeline

FAULTS = Path(__file__).parents[3] / "benchmarks" / "faults"


def attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: str) -> dict[str, set[str]]:
    monkeypatch.syspath_prepend(str(FAULTS))
    import interrupted

    found: dict[str, set[str]] = {}
    for index in range(60):
        folder = tmp_path / str(index)
        folder.mkdir()
        record = interrupted.interrupt_loop(random.Random(f"{seed} {index}"), folder)
        found.setdefault(record["outcome"], set()).add(record.get("then", record.get("error")))
    return found


def test_an_interrupted_loop_ends_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = attempts(monkeypatch, tmp_path, "test")
    assert found == {"survived": {"went on", "resumed"}}


def test_a_pipeline_that_ignored_interrupts_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check_open(self: Pipeline) -> None:
        self._check_open()

    monkeypatch.setattr(Pipeline, "_check_usable", check_open)
    assert {"silent", "lost", "unclear"} & set(attempts(monkeypatch, tmp_path, "test"))
