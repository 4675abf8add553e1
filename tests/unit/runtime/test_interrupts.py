"""A loop that is interrupted anywhere goes on exactly, or says that it needs its checkpoint."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from interrupted_loops import interrupt_loop

from delaygrad.runtime.pipeline import Pipeline


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """What becomes of 60 loops, each interrupted at a place of its own."""

    def attempt(index: int) -> tuple[str, str]:
        folder = tmp_path / str(index)
        folder.mkdir()
        record = interrupt_loop(random.Random(f"test {index}"), folder)
        return record["outcome"], record.get("then", record.get("error"))

    return map(attempt, range(60))


def test_an_interrupted_loop_ends_with_the_same_bits(attempts: Iterator[tuple[str, str]]) -> None:
    assert set(attempts) == {("survived", "went on"), ("survived", "resumed")}


def test_a_pipeline_that_ignored_interrupts_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, attempts: Iterator[tuple[str, str]]
) -> None:
    monkeypatch.setattr(Pipeline, "_check_usable", Pipeline._check_open)
    assert any(outcome in ("silent", "lost", "unclear") for outcome, _ in attempts)
