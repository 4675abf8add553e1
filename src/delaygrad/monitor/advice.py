"""Say in words when a run's delays are about to harm it, and what helps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

_NEAR = 3
"""Of so many earlier measurements, of any stages, one must agree: one alone may be an outlier."""
_GROWN = 10.0
"""Growth of a gradient's norm that means trouble."""

_REMEDY = (
    "lower the learning rate, use more micro-batches (M >= K-1 keeps every delay at one update), "
    "or a correction (Lookahead)"
)


class Advice:
    """Watch the rows of all stages; warn once, and again after all stages were well.

    A warning needs two rows in trouble: consecutive rows of one stage, or rows near each other.
    """

    def __init__(self) -> None:
        self._near = deque[bool](maxlen=_NEAR)
        self._troubled: dict[int, bool] = {}  # by stage, in its last row
        self._warned = False

    def look(self, row: Mapping[str, Any]) -> str | None:
        """Take a row of the monitor; return a warning, or None.

        Example:
            >>> advice, row = Advice(), {"stage": 0, "delay": 3, "stability": 2.0, "cosine": 0.1}
            >>> advice.look(row) is None, advice.look(row).split(";")[0]
            (True, 'stage 0 takes steps 2.0 times the largest stable one (delay in updates: 3)')
        """
        stage, trouble = row["stage"], _trouble(row)
        confirmed = self._troubled.get(stage, False) or any(self._near)
        warns = trouble is not None and confirmed and not self._warned
        self._troubled[stage] = trouble is not None
        self._near.append(trouble is not None)
        self._warned = (self._warned or warns) and any(self._troubled.values())
        return f"{trouble}; {_REMEDY}" if warns else None


def _trouble(row: Mapping[str, Any]) -> str | None:
    stability, direction = row.get("stability"), row.get("sufficient_direction")
    growth = row.get("growth")
    stage, delay = f"stage {row['stage']}", f"delay in updates: {row['delay']}"
    if stability is not None and stability > 1:
        return f"{stage} takes steps {stability:.1f} times the largest stable one ({delay})"
    if direction is not None and direction < 0 < row["delay"]:
        return (
            f"{stage} applies gradients that point uphill by now (sufficient direction: "
            f"{direction:.2f}, {delay})"
        )
    if growth is not None and growth > _GROWN:
        return f"the norm of a stage's gradient is {growth:.0f} times as large as at the start"
    return None
