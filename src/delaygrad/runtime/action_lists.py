"""Which actions the stages of one process do, or wait for, in an iteration and in a drain."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from delaygrad.schedule import Action, Kind, Schedule, validate

Order = Callable[[Iterable[Action], Schedule, int], list[Action]]
"""``order(actions, schedule, num_stages)``: in which order a process does its actions."""


def as_scheduled(actions: Iterable[Action], schedule: Schedule, num_stages: int) -> list[Action]:
    """List actions in the schedule's own order."""
    return list(actions)


class ActionLists:
    """List actions, iteration by iteration.

    Args:
        schedule: of the method.
        num_stages: K.
        stages: those whose actions are listed.
        order: in which this process does them.

    Raises:
        ScheduleError: the schedule is wrong.
    """

    def __init__(
        self,
        schedule: Schedule,
        num_stages: int,
        stages: Iterable[int],
        order: Order,
    ) -> None:
        _check_schedule(schedule, num_stages)
        self._schedule, self._num_stages, self._stages = schedule, num_stages, tuple(stages)
        self._order = order
        # What happens in every iteration but for the fill, as if batch 0 entered the network in it.
        steady = (
            action
            for tick in range(schedule.micro_batches)
            for action in schedule.actions(
                tick, num_stages, stages=self._stages, first_batch=-sys.maxsize
            )
        )
        self._steady = order(steady, schedule, num_stages)

    def of_iteration(self, iteration: int, phase: int) -> list[Action]:
        """List the actions of an iteration.

        Args:
            iteration: its number.
            phase: the first (micro-)batch since the last flush; earlier ones do not exist.
        """
        start = iteration * self._schedule.micro_batches
        return [
            Action(k, kind, start + batch_index)
            for k, kind, batch_index in self._steady
            if start + batch_index >= phase  # others do not exist: this is the fill
        ]

    def of_drain(self, iteration: int, phase: int) -> list[Action]:
        """List the actions of a drain before an iteration."""
        end = iteration * self._schedule.micro_batches
        schedule, num_stages = self._schedule, self._num_stages
        drain = schedule.drain(end, num_stages, stages=self._stages, first_batch=phase)
        return self._order(drain, schedule, num_stages)

    def updates_last(
        self, actions: Sequence[Action]
    ) -> Iterator[tuple[list[Action], list[Action]]]:
        """Yield, for each iteration, its other actions and its updates."""
        for _, each in groupby(
            actions, lambda action: self._schedule.iteration_of(action, self._num_stages)
        ):
            of_iteration = list(each)
            updates = [action for action in of_iteration if action.kind is Kind.UPDATE]
            yield [action for action in of_iteration if action.kind is not Kind.UPDATE], updates


def _check_schedule(schedule: Schedule, num_stages: int) -> None:
    """Simulate a short run, so that a wrong schedule is an error here and not a hang later."""
    stages = range(num_stages)
    depth = max(schedule.offset(k, num_stages) + schedule.lag(k, num_stages) for k in stages)
    end = schedule.micro_batches * (depth // schedule.micro_batches + 2)
    run = [schedule.actions(tick, num_stages) for tick in range(end)]
    actions = [action for tick in run for action in tick]
    validate([*actions, *schedule.drain(end, num_stages)], num_stages, schedule.micro_batches)
