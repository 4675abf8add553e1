"""Loss scaling: keep small gradients above the smallest number of float16."""

from __future__ import annotations

from dataclasses import dataclass

from delaygrad.methods.axes.axis import Axis


@dataclass(frozen=True, repr=False)
class LossScale(Axis):
    """Multiply the loss of each batch by a scale, and divide the gradients by it.

    A batch keeps the scale with which it enters the network. Where a stage finds a gradient that is
    not finite, this stage and those below skip the batch. The batches that enter after that get at
    most ``backoff`` times the scale of the skipped batch.

    Args:
        initial: scale of the first batch, above 0.
        growth: factor of the scale after ``growth_interval`` batches that were not skipped.
        backoff: see above; between 0 and 1.
        growth_interval: at least 1.

    Raises:
        ValueError: a number is out of range.
    """

    initial: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        if not (self.initial > 0 and self.growth >= 1 and 0 < self.backoff < 1):
            raise ValueError(
                "a loss scale must be above 0, must not shrink by growth, and must shrink by "
                f"backoff ({self})"
            )
        if self.growth_interval < 1:
            raise ValueError(
                f"growth_interval must be at least 1 (growth_interval: {self.growth_interval})"
            )
