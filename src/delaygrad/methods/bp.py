"""Backpropagation through the same stages: the baseline.

Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", Nature 1986.

    w[k]@(t+1) = w[k]@t - lr * grad_k f(batch t; w@t)          for every stage k

One stage works at a time; the stages wait for the forward of those below and for the backward of
those above. With ``micro_batches`` the gradient is accumulated over parts of the batch; the loss is
the mean over the batch still, but what sees a whole batch at once (BatchNorm) sees a part.
Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from delaygrad.methods.method import Method
from delaygrad.schedule import Schedule, flush


@dataclass(frozen=True, repr=False)
class BP(Method):
    """Backpropagation, one batch at a time.

    Args:
        micro_batches: parts that a batch is split into, at least 1; the loss must be a mean over
            the batch.

    Example:
        >>> BP().schedule.delay(0, 4)
        0
    """

    micro_batches: int = 1

    def __post_init__(self) -> None:
        flush(self.micro_batches)  # raises where it means nothing

    @property
    def name(self) -> str:
        return "bp"

    @property
    def schedule(self) -> Schedule:
        return flush(self.micro_batches)
