"""Measured speed-ups, as the axis of time of another target's figure uses them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HOW = {"computing": "measured", "sleeping": "with sleeping stages"}


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """Throughput with K processes over that of backpropagation in one.

    Attributes:
        value: the ratio.
        how: it was measured, in words.
    """

    value: float
    how: str


def speed_ups(rows: Iterable[dict[str, Any]], model: str) -> dict[int, SpeedUp]:
    """Pick the speed-ups of a network by DDG, by K: computing stages rather than sleeping ones.

    Args:
        rows: of a target of kind speed.
        model: by its name.
    Example:
        >>> row = {"workload": "resnet8", "stages": 2, "contestant": "ddg", "smoke": False}
        >>> speed_ups([{**row, "how": "computing", "speedup": {"median": 1.8}}], "resnet8")
        {2: SpeedUp(value=1.8, how='measured')}
    """
    found: dict[int, SpeedUp] = {}
    for how in ("sleeping", "computing"):
        for row in rows:
            known = row["workload"] == model and row["how"] == how and row["contestant"] == "ddg"
            if known and "speedup" in row and not row["smoke"]:
                value = float(row["speedup"]["median"])
                found[row["stages"]] = SpeedUp(value=value, how=_HOW[how])
    return found


def rows_on_record(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a ``results.json``, [] if there is none."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows
