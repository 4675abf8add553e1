"""Predict the time of an iteration by playing the schedule with given times.

Every stage works alone, through its actions in the order of the schedule. It waits for the
activation from below and the error gradient from above; messages of one direction follow each
other over the link.

With two stages, slack 0, equal times S = f + b + u and c from one stage to the other this gives
S + c: the loop from a forward of stage 0 over stage 1 to the backward that needs its error gradient
and on to the next but one forward takes 2S + 2c and spans two iterations. Over m boundaries the
loop takes (m+1)S + 2mc in 1 + m(1 + slack) iterations: with many stages 2c are exposed, and none
while 2c ≤ slack · S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from delaygrad.partition.costs import Seconds
from delaygrad.planning.link import Link
from delaygrad.schedule import Action, Kind, Schedule

Ties: TypeAlias = Mapping[tuple[int, int], tuple[float, float]]
"""(owner, borrower) -> bytes of the values and of the gradients of a micro-batch."""

_MEASURED = 120  # iterations, in addition to some fills; with few, half a loop would count as one


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Bytes that one batch sends over a boundary.

    Args:
        activation_bytes: forwards.
        gradient_bytes: backwards.
    """

    activation_bytes: float
    gradient_bytes: float


def iteration_s(
    stages: Sequence[Seconds],
    schedule: Schedule,
    *,
    boundaries: Sequence[Boundary] = (),
    link: Link | None = None,
    ties: Ties = MappingProxyType({}),
) -> float:
    """Predict the seconds of an iteration in steady state.

    Args:
        stages: times of each stage for one batch; each of M micro-batches takes 1/M of them, and
            the update is done once.
        schedule: of the stages' actions.
        boundaries: K-1, between the stages; with the link.
        link: between each two neighbours, and between owner and borrower of a shared parameter;
            None costs nothing.
        ties: what shared parameters send over these links.
    Example:
        >>> from delaygrad.schedule import FLUSH, LOCKED
        >>> stage = Seconds(forward_s=1.0, backward_s=2.0)
        >>> iteration_s([stage, stage], LOCKED), iteration_s([stage, stage], FLUSH)
        (3.0, 6.0)
    """
    num_stages = len(stages)
    fill = max(
        schedule.offset(k, num_stages) + schedule.lag(k, num_stages) for k in range(num_stages)
    )
    depth = fill + num_stages + 1
    warm_up, measured = 3 * depth, 8 * depth + _MEASURED
    timetable = _Timetable(stages, schedule, boundaries, link, ties)
    start = timetable.play(warm_up)
    end = timetable.play(measured)
    # A stage with a backlog from the fill still runs ahead of the steady state, none behind it.
    return max(late - early for early, late in zip(start, end, strict=True)) / measured


class _Timetable:
    """The stages, simulated tick by tick."""

    def __init__(
        self,
        stages: Sequence[Seconds],
        schedule: Schedule,
        boundaries: Sequence[Boundary],
        link: Link | None,
        ties: Ties = MappingProxyType({}),
    ) -> None:
        self._stages, self._schedule = stages, schedule
        self._ties = [
            (owner, borrower, _Direction(link, values), _Direction(link, gradients))
            for (owner, borrower), (values, gradients) in ties.items()
        ]
        self._tick = 0
        self._free = [0.0] * len(stages)  # when each stage has done all before
        nothing = Boundary(activation_bytes=0.0, gradient_bytes=0.0)
        boundaries, parts = boundaries or [nothing] * (len(stages) - 1), schedule.micro_batches
        self._activations = [_Direction(link, each.activation_bytes / parts) for each in boundaries]
        self._gradients = [_Direction(link, each.gradient_bytes / parts) for each in boundaries]

    def play(self, num_iterations: int) -> list[float]:
        """Simulate further; return the time at which each stage has finished."""
        end = self._tick + num_iterations * self._schedule.micro_batches
        for tick in range(self._tick, end):
            for action in self._schedule.actions(tick, len(self._stages)):
                self.do(action)
        self._tick = end
        return list(self._free)

    def do(self, action: Action) -> None:
        """Let a stage work as soon as it is free and has what it needs."""
        k, batch, parts = action.stage_index, action.batch_index, self._schedule.micro_batches
        if action.kind is Kind.FORWARD:
            arrived = self._activations[k - 1].arrivals.pop(batch) if k > 0 else 0.0
            for _, borrower, values, _ in self._ties:
                arrived = max(arrived, values.arrivals.pop(batch) if k == borrower else 0.0)
            self._free[k] = max(self._free[k], arrived) + self._stages[k].forward_s / parts
            if k < len(self._activations):
                self._activations[k].send(batch, self._free[k])
            for owner, _, values, _ in self._ties:
                if k == owner:
                    values.send(batch, self._free[k])
        elif action.kind is Kind.BACKWARD:
            arrived = self._gradients[k].arrivals.pop(batch) if k < len(self._gradients) else 0.0
            for owner, _, _, gradients in self._ties:
                arrived = max(arrived, gradients.arrivals.pop(batch) if k == owner else 0.0)
            self._free[k] = max(self._free[k], arrived) + self._stages[k].backward_s / parts
            if k > 0:
                self._gradients[k - 1].send(batch, self._free[k])
            for _, borrower, _, gradients in self._ties:
                if k == borrower:
                    gradients.send(batch, self._free[k])
        else:
            self._free[k] += self._stages[k].update_s


class _Direction:
    """One direction of a link."""

    def __init__(self, link: Link | None, num_bytes: float) -> None:
        self._transfer_s = link.transfer_s(num_bytes) if link else 0.0
        self._latency_s = link.latency_s if link else 0.0
        self._free = 0.0
        self.arrivals: dict[int, float] = {}

    def send(self, batch: int, now: float) -> None:
        self._free = max(self._free, now) + self._transfer_s
        self.arrivals[batch] = self._free + self._latency_s
