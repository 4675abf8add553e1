"""A schedule says which batch each stage takes forward and backward in each iteration.

Two numbers per stage say it all. With stages k = 0..K-1, in iteration t stage k takes

    forward   batch t - offset(k)
    backward  batch t - offset(k) - delay(k), then updates

    schedule   offset(k)   delay(k)   published as
    locked     0           K-1-k      DDG
    flush      0           0          backpropagation, one stage at a time

A batch that would be before the first (the *fill*) or after the last (the *drain*) is left out:
no action, no update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from delaygrad.errors import ScheduleError
from delaygrad.schedule.action import Action, Kind


@dataclass(frozen=True)
class Schedule:
    """The timetable of all stages, as a rule.

    Args:
        name: what the literature calls it.
        offset_rule: (stage_index, num_stages) -> iterations from a batch's entry into the network
            to its forward at the stage; must not fall from one stage to the next.
        delay_rule: (stage_index, num_stages) -> iterations from a batch's forward at the stage to
            its backward there. Without accumulation that is the delay in updates.

    Example:
        >>> [str(action) for action in LOCKED.actions(2, num_stages=2)]
        ['0F2', '1F2', '1B2', '1U2', '0B1', '0U1']

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, section 3 (modules there count from 1: K-k).
    """

    name: str
    offset_rule: Callable[[int, int], int]
    delay_rule: Callable[[int, int], int]

    def offset(self, stage_index: int, num_stages: int) -> int:
        """Iterations from a batch's entry into the network to its forward at this stage."""
        _check_stage(stage_index, num_stages)
        return self.offset_rule(stage_index, num_stages)

    def delay(self, stage_index: int, num_stages: int) -> int:
        """Updates between a batch's forward and its backward at this stage.

        Args:
            stage_index: 0..num_stages-1.
            num_stages: K, at least 1.

        Raises:
            ScheduleError: there is no such stage.

        Example:
            >>> [LOCKED.delay(k, 4) for k in range(4)]
            [3, 2, 1, 0]
        """
        _check_stage(stage_index, num_stages)
        return self.delay_rule(stage_index, num_stages)

    def actions(
        self, iteration: int, num_stages: int, *, first_batch: int = 0, end_batch: int | None = None
    ) -> list[Action]:
        """List what all stages do in one iteration, in an order that one process can follow.

        A rank follows the actions of its own stage and leaves out the others.

        Args:
            iteration: t, from 0.
            num_stages: K.
            first_batch: the first batch of this phase; earlier ones are not there (fill).
            end_batch: one more than the last batch (drain); None while batches keep coming.
        """

        def present(batch_index: int) -> bool:
            return first_batch <= batch_index and (end_batch is None or batch_index < end_batch)

        forward, backward = [], []
        for k in range(num_stages):
            batch_index = iteration - self.offset(k, num_stages)
            if present(batch_index):
                forward.append(Action(k, Kind.FORWARD, batch_index))
            batch_index -= self.delay(k, num_stages)
            if present(batch_index):
                update = Action(k, Kind.UPDATE, batch_index)
                backward.append((Action(k, Kind.BACKWARD, batch_index), update))
        # Activations run down the stages and gradients run up, so this order always has what it
        # needs, whether a gradient was made in this iteration or in an earlier one.
        return forward + [action for pair in reversed(backward) for action in pair]

    def iteration_of(self, action: Action, num_stages: int) -> int:
        """Say in which iteration an action takes place; ``actions`` the other way round.

        Example:
            >>> LOCKED.iteration_of(Action.parse("0B3"), num_stages=3)
            5
        """
        forward = action.batch_index + self.offset(action.stage_index, num_stages)
        if action.kind is Kind.FORWARD:
            return forward
        return forward + self.delay(action.stage_index, num_stages)

    def drain(self, end_batch: int, num_stages: int, *, first_batch: int = 0) -> Iterator[Action]:
        """Yield what is still to do when no batch follows ``end_batch - 1``.

        Example:
            >>> [str(action) for action in LOCKED.drain(5, num_stages=3)]
            ['1B4', '1U4', '0B3', '0U3', '0B4', '0U4']
        """
        stages = range(num_stages)
        depth = max(self.offset(k, num_stages) + self.delay(k, num_stages) for k in stages)
        for iteration in range(end_batch, end_batch + depth):
            yield from self.actions(
                iteration, num_stages, first_batch=first_batch, end_batch=end_batch
            )


def _check_stage(stage_index: int, num_stages: int) -> None:
    if not 0 <= stage_index < num_stages:
        raise ScheduleError(
            f"no such stage (stage: {stage_index}, stages: {num_stages}); "
            f"stages count from 0 to {num_stages - 1}"
        )


def _no_iterations(stage_index: int, num_stages: int) -> int:
    return 0


def _stages_above(stage_index: int, num_stages: int) -> int:
    return num_stages - 1 - stage_index


LOCKED = Schedule("locked", _no_iterations, _stages_above)
"""Forward the newest batch through all stages; run every backward on the gradient of the iteration
before. No stage waits for the backward of the stages above it."""

FLUSH = Schedule("flush", _no_iterations, _no_iterations)
"""Forward and backward of one batch through all stages before the next: backpropagation."""
