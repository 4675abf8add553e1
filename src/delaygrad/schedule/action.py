"""One thing that one stage does."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from delaygrad.errors import ScheduleError


class Kind(StrEnum):
    """What an action does with its batch."""

    FORWARD = "F"
    BACKWARD = "B"
    UPDATE = "U"


class Action(NamedTuple):
    """A stage, what it does, and for which batch; prints as ``2F0``.

    An action includes receiving what it needs and sending its result.

    Attributes:
        stage_index: 0..K-1 from the input.
        kind: forward, backward, or update with the gradients up to this batch.
        batch_index: counts from 0, in the order in which batches enter the network; counts
            micro-batches if batches are split.

    Example:
        >>> str(Action(2, Kind.FORWARD, 0))
        '2F0'
        >>> Action.parse("1B3") == Action(1, Kind.BACKWARD, 3)
        True
    """

    stage_index: int
    kind: Kind
    batch_index: int

    def __str__(self) -> str:
        return f"{self.stage_index}{self.kind}{self.batch_index}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read what ``str`` printed.

        Raises:
            ScheduleError: the text is not an action.
        """
        match = re.fullmatch(r"(\d+)([FBU])(\d+)", text)
        if match is None:
            raise ScheduleError(f"not an action (text: {text!r}); actions look like 2F0, 1B3, 0U3")
        return cls(int(match[1]), Kind(match[2]), int(match[3]))
