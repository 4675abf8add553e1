"""Which parameters the forward of a batch meets: the live ones, or a prediction of later ones.

The forward of a batch uses its *met* parameters v[k]. On average, a stage's gradient is applied
lag(k) / M updates after the forward. A prediction looks that many updates ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from delaygrad.methods.axes.axis import Axis
from delaygrad.schedule import Schedule


@dataclass(frozen=True, repr=False)
class ForwardWeights(Axis):
    """The axis; use ``Live`` or ``Predicted``."""

    def horizon_in_updates(
        self, schedule: Schedule, stage_index: int, num_stages: int
    ) -> float | None:
        """Return how many updates ahead a stage predicts; None: it meets the live parameters."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Live(ForwardWeights):
    """The parameters as the last update left them: v[k] = w[k]."""

    def horizon_in_updates(
        self, schedule: Schedule, stage_index: int, num_stages: int
    ) -> float | None:
        return None


@dataclass(frozen=True, repr=False)
class Predicted(ForwardWeights):
    """Parameters predicted from the last update: v[k] = w[k] + h[k] (w[k] - w_prev[k]).

    ``w_prev[k]`` is what the parameters were before the last update. The optimizer, weight decay,
    evaluation and the saved network use w. The optimizer is any of torch's, unmodified. A falling
    learning rate makes the prediction smaller by itself. A parameter that is changed by hand is
    not predicted until its next update.

    Args:
        horizon: updates to look ahead; "mean" is lag(k) / M, the stage's mean staleness, and
            "largest" is ceil(lag(k) / M).
        offset: additional updates to look ahead, on every stage including the last; 1 is the
            difference between Nesterov's and heavy-ball momentum.

    Raises:
        ValueError: ``horizon`` is neither a number nor one of the two words.

    Example:
        >>> from delaygrad.schedule import locked
        >>> rule = Predicted(offset=1)
        >>> [rule.horizon_in_updates(locked(micro_batches=4), k, 3) for k in range(3)]
        [1.5, 1.25, 1.0]

    References:
        Chen et al., "Efficient and Robust Parallel DNN Training through Model Parallelism on
        Multi-GPU Platform" (SpecTrain), arXiv:1809.02839, predicts from the optimizer's momentum.
        Differs: uses the last difference of the parameters, so any optimizer works.
    """

    horizon: float | Literal["mean", "largest"] = "mean"
    offset: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.horizon, str) and self.horizon not in ("mean", "largest"):
            raise ValueError(
                f"horizon must be a number, 'mean' or 'largest' (horizon: {self.horizon!r})"
            )

    def horizon_in_updates(
        self, schedule: Schedule, stage_index: int, num_stages: int
    ) -> float | None:
        if self.horizon == "mean":
            ahead = schedule.lag(stage_index, num_stages) / schedule.micro_batches
        elif self.horizon == "largest":
            ahead = schedule.delay(stage_index, num_stages)
        else:
            ahead = float(self.horizon)
        return ahead + self.offset
