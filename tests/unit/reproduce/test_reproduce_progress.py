"""What a user at a terminal, or reading a log, sees."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from targets import runs_of

from delaygrad.reproduce import progress as progress_module
from delaygrad.reproduce.progress import RunsProgress


def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    file = io.StringIO()
    monkeypatch.setattr(
        progress_module,
        "Console",
        lambda **_: Console(file=file, force_terminal=terminal, width=120, color_system=None),
    )
    second, third, *_ = runs = runs_of(tmp_path)[1:]
    with RunsProgress(runs, quiet=False) as progress:
        progress.started(second, {})
        progress.started(third, {"epoch": 1.0, "iteration": 10})
        progress.at(second, {})
        progress.at(third, {"epoch": 1.5, "iteration": 15})
        progress._bar.refresh()
        progress.ended(third, "diverged")
        progress.ended(second, "failed: the disk is full")
    return file.getvalue()


def test_terminal_shows_each_run_and_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(tmp_path, monkeypatch, terminal=True)
    assert "small/sgd-ddg-k2-seed0" in text
    assert "epoch 1.5 of 2" in text
    assert "0 of 8 runs" in text
    assert "2 of 8 runs" in text


def test_log_gets_a_line_for_each_run_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(tmp_path, monkeypatch, terminal=False).splitlines() == [
        "small/sgd-ddg-k2-seed0: diverged",
        "small/adam-bp-k1-seed0: failed: the disk is full",
    ]
