"""Say in words when a run's delays are about to harm it, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_IN_A_ROW = 2
"""Measurements of a stage in a row that must agree: one may be an outlier."""

_REMEDY = (
    "lower the learning rate, use more micro-batches (M >= K-1 keeps every delay at one update), "
    "or a correction (Lookahead)"
)


class Advice:
    """Watch the rows of all stages; warn of a stage once, and again after it was well."""

    def __init__(self) -> None:
        self._ill: dict[int, int] = {}  # measurements in a row, by stage

    def look(self, row: Mapping[str, Any]) -> str | None:
        """Take a row of the monitor; return a warning, or None.

        Example:
            >>> advice, row = Advice(), {"stage": 0, "delay": 3, "stability": 2.0, "cosine": 0.1}
            >>> advice.look(row) is None, advice.look(row).split(";")[0]
            (True, 'stage 0 takes steps 2.0 times the largest stable one (delay in updates: 3)')
        """
        stage, trouble = row["stage"], _trouble(row)
        self._ill[stage] = 0 if trouble is None else self._ill.get(stage, 0) + 1
        return f"{trouble}; {_REMEDY}" if self._ill[stage] == _IN_A_ROW else None


def _trouble(row: Mapping[str, Any]) -> str | None:
    stability, direction = row.get("stability"), row.get("sufficient_direction")
    stage, delay = f"stage {row['stage']}", f"delay in updates: {row['delay']}"
    if stability is not None and stability > 1:
        return f"{stage} takes steps {stability:.1f} times the largest stable one ({delay})"
    if direction is not None and direction < 0 < row["delay"]:
        return (
            f"{stage} applies gradients that point uphill by now (sufficient direction: "
            f"{direction:.2f}, {delay})"
        )
    return None
