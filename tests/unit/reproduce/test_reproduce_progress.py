"""What a user at a terminal, or reading a log, sees."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from targets import record, runs_of

from delaygrad.reproduce import runner
from delaygrad.reproduce.runner import RunsProgress


def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    file = io.StringIO()
    monkeypatch.setattr(
        runner,
        "Console",
        lambda **_: Console(file=file, force_terminal=terminal, width=120, color_system=None),
    )
    second, third, *_ = runs = runs_of(tmp_path)[1:]
    with RunsProgress(runs, quiet=False) as progress:
        progress.show(second)
        record(third, [0.5], losses=(2.0, 1.5, 1.0, 1.0))
        progress.show(third)
        progress._bar.refresh()
        progress.ended(third, "diverged")
        progress.ended(second, "failed: the disk is full")
    return file.getvalue()


def test_terminal_shows_each_run_and_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(tmp_path, monkeypatch, terminal=True)
    assert "small/sgd-ddg-k2-seed0" in text
    assert "epoch 1.0 of 2" in text
    assert "0 of 8 runs" in text
    assert "2 of 8 runs" in text


def test_log_gets_a_line_for_each_run_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(tmp_path, monkeypatch, terminal=False).splitlines() == [
        "small/sgd-ddg-k2-seed0: diverged",
        "small/adam-bp-k1-seed0: failed: the disk is full",
    ]
