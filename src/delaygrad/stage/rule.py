"""What a method prescribes for one stage, worked out once."""

from __future__ import annotations

from dataclasses import dataclass

from delaygrad.methods import Method


@dataclass(frozen=True, kw_only=True)
class StageRule:
    """The yes and no of one stage.

    Attributes:
        is_local: the stage makes its error gradient itself, and trains in its forward.
        waits: other batches go forward between the forward and the backward of a batch.
        horizon: updates that a forward predicts ahead; None: it meets the live parameters.
        lives: a backward meets the parameters of its own moment, not those of the forward.
        recomputes: no graph waits; the backward builds it.
        keeps_version: a batch in flight keeps the parameters of its forward.
        splits_batches: the stage updates in the middle of an iteration.
    """

    is_local: bool
    waits: bool
    horizon: float | None
    lives: bool
    recomputes: bool
    keeps_version: bool
    splits_batches: bool

    @classmethod
    def of(cls, method: Method, stage_index: int, num_stages: int) -> StageRule:
        """Work out what a method prescribes for a stage."""
        schedule, place = method.schedule, (stage_index, num_stages)
        is_local = method.error_gradient.is_local and stage_index < num_stages - 1
        waits = schedule.lag(*place) > 0 and not is_local
        horizon = method.forward_weights.horizon_in_updates(schedule, *place)
        lives, recomputes = method.linearise.weights == "live", method.recompute and waits
        return cls(
            is_local=is_local,
            waits=waits,
            horizon=horizon,
            lives=lives,
            recomputes=recomputes,
            keeps_version=(waits and not (recomputes and lives)) or horizon is not None,
            splits_batches=schedule.splits_batches(*place),
        )
