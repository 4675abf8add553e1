"""A schedule says which batch each stage takes forward and backward in each tick.

A tick takes one micro-batch forward and one backward. A batch is ``micro_batches`` of them, M; with
M = 1, the usual case, a tick is an iteration and a micro-batch is the batch. Two numbers per stage
define the schedule. With stages k = 0..K-1, in tick t stage k takes

    forward   micro-batch t - offset(k)
    backward  micro-batch t - offset(k) - lag(k); after the last one of a batch, it updates

    schedule   offset(k)   lag(k)                  published as
    locked     0           (K-1-k) (1 + slack)     DDG, with slack = 0
    unlocked   k           2 (K-1-k)               FDG, ADL, PipeDream's delays
    flush      0           0                       backpropagation, one stage at a time

A micro-batch before the first (in the *fill*) or after the last (in the *drain*) does not exist: no
action, no update. The delay in updates, between a forward and its backward, is at most
ceil(lag / M): it falls with M.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from delaygrad.errors import ScheduleError
from delaygrad.schedule.action import Action, Kind

_Column: TypeAlias = list[tuple[int, Kind, int]]
"""Stage, kind and age: ticks from a micro-batch's entry into the network to the action."""


@dataclass(frozen=True, repr=False)
class Schedule:
    """The actions of all stages in every tick, as a rule.

    Args:
        name: what the literature calls it.
        offset_rule: (stage_index, num_stages) -> ticks from a micro-batch's entry into the network
            to its forward at the stage; must not fall from one stage to the next.
        lag_rule: (stage_index, num_stages) -> ticks from a micro-batch's forward at the stage to
            its backward there; must not rise from one stage to the next.
        micro_batches: M per update, at least 1.

    Example:
        >>> [str(action) for action in LOCKED.actions(2, num_stages=2)]
        ['0F2', '1F2', '1B2', '1U2', '0B1', '0U1']

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, section 3 (modules there count from 1: K-k).
    """

    name: str
    offset_rule: Callable[[int, int], int]
    lag_rule: Callable[[int, int], int]
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise ScheduleError(
                f"an update needs at least one micro-batch (micro_batches: {self.micro_batches})"
            )

    def offset(self, stage_index: int, num_stages: int) -> int:
        """Ticks from a micro-batch's entry into the network to its forward at this stage."""
        _check_stage(stage_index, num_stages)
        return self.offset_rule(stage_index, num_stages)

    def lag(self, stage_index: int, num_stages: int) -> int:
        """Ticks between a micro-batch's forward and its backward at this stage."""
        _check_stage(stage_index, num_stages)
        return self.lag_rule(stage_index, num_stages)

    def delay(self, stage_index: int, num_stages: int) -> int:
        """Updates between a forward and its backward at this stage, at most: ceil(lag / M).

        Args:
            stage_index: 0..num_stages-1.
            num_stages: K, at least 1.

        Raises:
            ScheduleError: there is no such stage.

        Example:
            >>> [LOCKED.delay(k, 4) for k in range(4)]
            [3, 2, 1, 0]
            >>> [locked(micro_batches=2).delay(k, 4) for k in range(4)]
            [2, 1, 1, 0]
        """
        return -(-self.lag(stage_index, num_stages) // self.micro_batches)

    @property
    def slack(self) -> int | None:
        """Additional ticks of lag per boundary; None if the schedule has no such option.

        Example:
            >>> locked(slack=2).slack, FLUSH.slack
            (2, None)
        """
        return self.lag_rule.slack if isinstance(self.lag_rule, _StagesAbove) else None

    def splits_batches(self, stage_index: int, num_stages: int) -> bool:
        """Whether a stage updates in the middle of an iteration, between two parts of a batch.

        Example:
            >>> [locked(micro_batches=2).splits_batches(k, 4) for k in range(4)]
            [True, False, True, False]
        """
        age = self.offset(stage_index, num_stages) + self.lag(stage_index, num_stages)
        return age % self.micro_batches != 0

    def __repr__(self) -> str:
        rule = repr(self.lag_rule) if dataclasses.is_dataclass(self.lag_rule) else ""
        parts = [rule, f"micro_batches={self.micro_batches}" if self.micro_batches > 1 else ""]
        return f"{self.name}({', '.join(filter(None, parts))})"

    def to_json(self) -> dict[str, Any]:
        """Return plain values that tell two schedules apart."""
        return {
            "name": self.name,
            "offset": _named(self.offset_rule),
            "lag": _named(self.lag_rule),
            "micro_batches": self.micro_batches,
        }

    def messages_under_way(
        self, stage_index: int, num_stages: int, other: int | None = None
    ) -> int:
        """Messages of one direction that may be in flight between a stage and a later one.

        ``other`` is the later one, by default the next.

        The faster of the two stages may be ahead of the slower by this number.

        Example:
            >>> LOCKED.messages_under_way(0, 4), locked(slack=2).messages_under_way(0, 4)
            (2, 4)
        """
        here, above = (
            self.offset(k, num_stages) - self.lag(k, num_stages)
            for k in (stage_index, stage_index + 1 if other is None else other)
        )
        return above - here + 1

    def actions(
        self,
        tick: int,
        num_stages: int,
        *,
        stages: Sequence[int] | None = None,
        first_batch: int = 0,
        end_batch: int | None = None,
    ) -> list[Action]:
        """List what the stages do in one tick, in an order that one process can follow.

        A rank follows the actions of its own stage and leaves out the others.

        Args:
            tick: t, from 0.
            num_stages: K.
            stages: whose actions to list, in ascending order; None is all.
            first_batch: the first micro-batch of this phase; earlier ones do not exist (fill).
            end_batch: one more than the last micro-batch (drain); None while batches keep coming.
        """
        chosen = tuple(range(num_stages) if stages is None else stages)
        end = math.inf if end_batch is None else end_batch
        return [
            Action(k, kind, tick - age)
            for k, kind, age in self._column(num_stages, chosen)
            if first_batch <= tick - age < end
            and (kind is not Kind.UPDATE or (tick - age + 1) % self.micro_batches == 0)
        ]

    def _column(self, num_stages: int, stages: tuple[int, ...]) -> _Column:
        """Return what these stages do in every tick; cached, because every tick needs it."""
        column = self._columns.get((num_stages, stages))
        if column is None:
            forward = [(k, Kind.FORWARD, self.offset(k, num_stages)) for k in stages]
            # Activations run down the stages and gradients run up, so this order always has what it
            # needs, whether a gradient was made in this tick or in an earlier one.
            column = self._columns[num_stages, stages] = forward + [
                (k, kind, offset + self.lag(k, num_stages))
                for k, _, offset in reversed(forward)
                for kind in (Kind.BACKWARD, Kind.UPDATE)
            ]
        return column

    @cached_property
    def _columns(self) -> dict[tuple[int, tuple[int, ...]], _Column]:
        return {}

    def iteration_of(self, action: Action, num_stages: int) -> int:
        """Return the iteration in which an action takes place: the inverse of ``actions``.

        Example:
            >>> LOCKED.iteration_of(Action.parse("0B3"), num_stages=3)
            5
        """
        tick = action.batch_index + self.offset(action.stage_index, num_stages)
        if action.kind is not Kind.FORWARD:
            tick += self.lag(action.stage_index, num_stages)
        return tick // self.micro_batches

    def drain(
        self,
        end_batch: int,
        num_stages: int,
        *,
        stages: Sequence[int] | None = None,
        first_batch: int = 0,
    ) -> Iterator[Action]:
        """Yield the remaining actions when no micro-batch follows ``end_batch - 1``.

        Args: as for ``actions``.

        Example:
            >>> [str(action) for action in LOCKED.drain(5, num_stages=3)]
            ['1B4', '1U4', '0B3', '0U3', '0B4', '0U4']
        """
        depth = max(self.offset(k, num_stages) + self.lag(k, num_stages) for k in range(num_stages))
        for tick in range(end_batch, end_batch + depth):
            yield from self.actions(
                tick, num_stages, stages=stages, first_batch=first_batch, end_batch=end_batch
            )


def _check_stage(stage_index: int, num_stages: int) -> None:
    if not 0 <= stage_index < num_stages:
        raise ScheduleError(
            f"no such stage (stage: {stage_index}, stages: {num_stages}); "
            f"stages count from 0 to {num_stages - 1}"
        )


def _no_ticks(stage_index: int, num_stages: int) -> int:
    return 0


def _stages_below(stage_index: int, num_stages: int) -> int:
    return stage_index


def _twice_the_stages_above(stage_index: int, num_stages: int) -> int:
    return 2 * (num_stages - 1 - stage_index)


@dataclass(frozen=True)
class _StagesAbove:
    """(K-1-k) (1 + slack), as a value that can be compared."""

    slack: int

    def __call__(self, stage_index: int, num_stages: int) -> int:
        return (num_stages - 1 - stage_index) * (1 + self.slack)

    def __repr__(self) -> str:
        return f"slack={self.slack}" if self.slack else ""


def _named(rule: Callable[[int, int], int]) -> str:
    """Identify a rule by its name and its values."""
    if dataclasses.is_dataclass(rule) and not isinstance(rule, type):
        return f"{type(rule).__qualname__.lstrip('_')}{dataclasses.astuple(rule)}"
    return getattr(rule, "__qualname__", repr(rule)).lstrip("_")


def locked(slack: int = 0, micro_batches: int = 1) -> Schedule:
    """Forward the newest micro-batch through all stages; run every backward on an earlier gradient.

    No stage waits for the backward of the stages above it.

    Args:
        slack: additional ticks that an error gradient may take per boundary. Hides the time of a
            message to the neighbour and back, and increases the delay.
        micro_batches: M per update.

    Raises:
        ScheduleError: ``slack`` is negative, or ``micro_batches`` is below 1.

    Example:
        >>> [locked(slack=1).delay(k, 4) for k in range(4)]
        [6, 4, 2, 0]
    """
    if slack < 0:
        raise ScheduleError(f"slack must not be negative (slack: {slack})")
    return Schedule("locked", _no_ticks, _StagesAbove(slack), micro_batches)


def unlocked(micro_batches: int = 1) -> Schedule:
    """Move a micro-batch up one stage per tick, and its error gradient down one stage per tick.

    Within a tick, no stage waits for another stage.

    Args:
        micro_batches: M per update.

    Raises:
        ScheduleError: ``micro_batches`` is below 1.

    Example:
        >>> [unlocked().delay(k, 4) for k in range(4)]
        [6, 4, 2, 0]
    """
    return Schedule("unlocked", _stages_below, _twice_the_stages_above, micro_batches)


def flush(micro_batches: int = 1) -> Schedule:
    """Forward and backward of one micro-batch through all stages before the next.

    Args:
        micro_batches: M per update.

    Raises:
        ScheduleError: ``micro_batches`` is below 1.
    """
    return Schedule("flush", _no_ticks, _no_ticks, micro_batches)


LOCKED = locked()
"""DDG's schedule as published."""

FLUSH = flush()
"""Backpropagation."""
