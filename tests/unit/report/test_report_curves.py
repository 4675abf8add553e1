"""The figure is drawn from records alone, whatever is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from delaygrad.records import EventLog
from delaygrad.report import draw_curves

TRAINING = {"event": "training", "iteration": 1, "epoch": 0.5, "loss": 1.0}
TEST = {"event": "evaluation", "iteration": 2, "epoch": 1.0, "split": "test"}
VALIDATION = {**TEST, "split": "validation"}


@pytest.mark.parametrize(
    "events",
    [
        [],
        [TRAINING],
        [{**TEST, "accuracy": 0.5, "loss": 1.0}],
        [TRAINING, {**TRAINING, "epoch": 1.0, "loss": 0.0}, {**TEST, "accuracy": 1.0, "loss": 0.0}],
        [TRAINING, *({**split, "accuracy": 0.9, "loss": 0.2} for split in (TEST, VALIDATION))],
    ],
)
def test_figure_is_drawn(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    log = EventLog(tmp_path / "records.jsonl")
    for event in events:
        log.write(event["event"], **{key: event[key] for key in event if key != "event"})
    log.close()
    path = draw_curves(tmp_path, "ddg, 2 stages")
    assert path.read_bytes().startswith(b"\x89PNG")
