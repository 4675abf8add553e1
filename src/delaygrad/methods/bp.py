"""Backpropagation through the same stages: the baseline.

Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", Nature 1986.

    w[k]@(t+1) = w[k]@t - lr * grad_k f(batch t; w@t)          for every stage k

One stage works at a time; the stages wait for the forward of those below and for the backward of
those above. Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from delaygrad.methods.method import Method
from delaygrad.schedule import FLUSH, Schedule


@dataclass(frozen=True)
class BP(Method):
    """Backpropagation, one batch at a time.

    Example:
        >>> BP().schedule.delay(0, 4)
        0
    """

    @property
    def name(self) -> str:
        return "bp"

    @property
    def schedule(self) -> Schedule:
        return FLUSH
