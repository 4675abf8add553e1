"""What a stage asks of the other replicas of itself."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from delaygrad.stash import ParameterVersion


class Averaging(Protocol):
    """The average of a stage's gradients over its replicas."""

    def during(self, version: ParameterVersion | None) -> AbstractContextManager[None]:
        """Within the block a backward completes the gradients; afterwards they are on their way.

        Args:
            version: that the forward has met; None is the live parameters themselves.
        """

    def finish(self) -> bool:
        """Wait until ``.grad`` holds the average; say whether anything was on its way."""
