"""Predict the time of synchronous pipelines: the rivals that compute backpropagation's gradients.

The stages are given, with their times, on ranks 0 … K-1. On each rank the forwards that wait for
their backward are limited, as in the papers.

    1F1B              a rank has one stage; forwards up to the limit, K - rank, then one backward
                      and one forward in turn
    interleaved 1F1B  likewise, but a rank has two halves of stages, K halves apart; micro-batches
                      enter in groups of K, so M is a multiple of K
    zero bubble       the backward is split in two equal halves: gradients of inputs, for which the
                      stage below waits, and gradients of weights, which fill gaps; up to
                      2 (K - rank) - 1 forwards wait. A rank does whichever action can start first;
                      if several can, it prefers gradients of inputs, then a forward

A rank begins the next iteration as soon as it has updated. All of this errs in favour of the
rivals: no micro-batch costs more for being half a stage or half a backward.

References:
    Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
    Megatron-LM", SC 2021, arXiv:2104.04473 (interleaved 1F1B). Qi et al., "Zero Bubble Pipeline
    Parallelism", ICLR 2024, arXiv:2401.10241 (ZB-H2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from delaygrad.partition.costs import Seconds
from delaygrad.planning.link import Link
from delaygrad.planning.simulate import Boundary

_ITERATIONS = 4
_BEFORE_STEADY = 2

_FORWARD, _BACKWARD, _WEIGHTS = "forward", "backward", "weights"
_PREFERRED = (_BACKWARD, _FORWARD, _WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class Synchronous:
    """A synchronous schedule.

    Attributes:
        name: in the literature.
        pieces: of stages that a rank has.
        splits: whether the backward is split.
    """

    name: str
    pieces: int = 1
    splits: bool = False

    def takes(self, num_stages: int, micro_batches: int) -> bool:
        """Whether the schedule is defined for these numbers."""
        return self.pieces == 1 or micro_batches % num_stages == 0

    def limit(self, rank: int, num_stages: int) -> int:
        """Return how many forwards may wait on a rank."""
        after = num_stages - rank
        if self.pieces > 1:
            return 2 * (after - 1) + (self.pieces - 1) * num_stages + 1
        return 2 * after - 1 if self.splits else after

    def iteration_s(
        self,
        stages: Sequence[Seconds],
        micro_batches: int,
        *,
        boundaries: Sequence[Boundary] = (),
        link: Link | None = None,
    ) -> float:
        """Predict the seconds of an iteration in steady state.

        Args:
            stages: times of each stage for one batch; each micro-batch takes 1/M of them.
            micro_batches: M.
            boundaries: K-1, between the stages; with the link.
            link: from each rank to another; None costs nothing.

        Example:
            >>> stage = Seconds(forward_s=1.0, backward_s=2.0)
            >>> [each.iteration_s([stage, stage], 4) for each in SYNCHRONOUS]
            [3.75, 3.375, 3.0]
        """
        timetable = _Timetable(self, stages, micro_batches, boundaries, link)
        ends = timetable.play(_ITERATIONS)
        early, late = ends[_BEFORE_STEADY - 1], ends[-1]
        return max(map(float.__sub__, late, early)) / (_ITERATIONS - _BEFORE_STEADY)


SYNCHRONOUS = (
    Synchronous(name="1F1B"),
    Synchronous(name="interleaved 1F1B", pieces=2),
    Synchronous(name="zero bubble", splits=True),
)


class _Rank:
    """What a rank has done, and what it does next."""

    def __init__(
        self,
        limit: int,
        forwards: Iterator[tuple[int, int]],
        backwards: Iterator[tuple[int, int]],
    ) -> None:
        self.limit = limit
        self.orders = {_FORWARD: forwards, _BACKWARD: backwards}
        self.heads = {kind: next(order) for kind, order in self.orders.items()}
        self.weights: list[tuple[int, int]] = []
        self.free = 0.0
        self.done = dict.fromkeys(_PREFERRED, 0)
        self.updates = list[float]()


class _Timetable:
    """The ranks, action by action in the order of their starts.

    A piece is numbered from the input: piece p is on rank p mod K, and is part p div ``pieces`` of
    the stages. ``arrived`` holds when what an action needs is there.
    """

    def __init__(
        self,
        schedule: Synchronous,
        stages: Sequence[Seconds],
        micro_batches: int,
        boundaries: Sequence[Boundary],
        link: Link | None,
    ) -> None:
        self._schedule, self._parts, self._link = schedule, micro_batches, link
        self._stages, self._num_ranks = stages, len(stages)
        self._last = len(stages) * schedule.pieces - 1
        nothing = Boundary(activation_bytes=0.0, gradient_bytes=0.0)
        self._boundaries = [*(boundaries or [nothing] * (len(stages) - 1)), nothing]
        self._lines: dict[tuple[int, int], float] = {}  # of two ranks: when their link is free
        self._arrived: dict[tuple[str, int, int], float] = {}
        up = range(schedule.pieces)
        self._ranks = [
            _Rank(
                schedule.limit(rank, len(stages)),
                self._order(rank, up),
                self._order(rank, up[::-1]),
            )
            for rank in range(len(stages))
        ]

    def _order(self, rank: int, pieces: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield (piece, micro-batch); several pieces in groups of K micro-batches."""
        size = self._num_ranks if len(pieces) > 1 else 1
        for first in itertools.count(0, size):
            for piece in pieces:
                for micro_batch in range(first, first + size):
                    yield rank + piece * self._num_ranks, micro_batch

    def play(self, num_iterations: int) -> list[tuple[float, ...]]:
        """Simulate; return for each iteration when each rank has updated."""
        nexts = [self._next(rank) for rank in range(self._num_ranks)]
        while min(len(rank.updates) for rank in self._ranks) < num_iterations:
            start, _, rank, kind = min(nexts)
            assert start < math.inf, "no rank can act"
            other = self._do(rank, _PREFERRED[kind], start)
            for changed in {rank, other}:
                nexts[changed] = self._next(changed)
        ends = [rank.updates[:num_iterations] for rank in self._ranks]
        return list(zip(*ends, strict=True))

    def _next(self, index: int) -> tuple[float, int, int, int]:
        """Return when the next action of a rank starts, and which; no action starts at infinity."""
        rank = self._ranks[index]
        found = (math.inf, 0, index, 0)
        for number, kind in enumerate(_PREFERRED):
            if kind == _WEIGHTS:
                ready = 0.0 if rank.weights else math.inf
            else:
                piece, micro_batch = rank.heads[kind]
                entering = kind == _FORWARD and piece == 0
                ready = 0.0 if entering else self._arrived.get((kind, piece, micro_batch), math.inf)
                forwards = self._may_go_forward(rank)
                if not forwards if kind == _FORWARD else forwards and not self._schedule.splits:
                    ready = math.inf
            found = min(found, (max(rank.free, ready), number, index, number))
        return found

    def _may_go_forward(self, rank: _Rank) -> bool:
        waiting = rank.done[_FORWARD] - rank.done[_BACKWARD]
        of_iteration = self._parts * self._schedule.pieces
        begun = rank.done[_FORWARD] < of_iteration * (len(rank.updates) + 1)
        return begun and waiting < rank.limit

    def _do(self, index: int, kind: str, start: float) -> int:
        """Let a rank do its next action; return the rank that may act on what is sent."""
        rank, schedule = self._ranks[index], self._schedule
        if kind == _WEIGHTS:
            piece, micro_batch = rank.weights.pop(0)
        else:
            piece, micro_batch = rank.heads[kind]
            rank.heads[kind] = next(rank.orders[kind])
        stage = self._stages[piece // schedule.pieces]
        of_batch = stage.forward_s if kind == _FORWARD else stage.backward_s
        halves = schedule.pieces * (2 if schedule.splits and kind != _FORWARD else 1)
        end = rank.free = start + of_batch / halves / self._parts
        rank.done[kind] += 1
        if kind == _BACKWARD and schedule.splits:
            rank.weights.append((piece, micro_batch))
        ending = _WEIGHTS if schedule.splits else _BACKWARD
        if kind == ending and rank.done[kind] % (self._parts * schedule.pieces) == 0:
            pieces = range(index, self._last + 1, self._num_ranks)
            updates = (self._stages[each // schedule.pieces].update_s for each in pieces)
            rank.free += sum(updates) / schedule.pieces
            rank.updates.append(rank.free)
        return index if kind == _WEIGHTS else self._send(kind, piece, micro_batch, end)

    def _send(self, kind: str, piece: int, micro_batch: int, now: float) -> int:
        """Send what an action has computed to the piece that needs it; return that piece's rank."""
        if kind == _FORWARD and piece == self._last:  # the loss
            self._arrived[_BACKWARD, piece, micro_batch] = now
            return piece % self._num_ranks
        target = piece + (1 if kind == _FORWARD else -1)
        if target < 0:
            return 0
        boundary = self._boundaries[min(piece, target) // self._schedule.pieces]
        own = boundary.activation_bytes if kind == _FORWARD else boundary.gradient_bytes
        line = (piece % self._num_ranks, target % self._num_ranks)
        arrival = now
        if self._link is not None and line[0] != line[1]:
            free = max(self._lines.get(line, 0.0), now) + self._link.transfer_s(own / self._parts)
            self._lines[line] = free
            arrival = free + self._link.latency_s
        self._arrived[kind, target, micro_batch] = arrival
        return target % self._num_ranks
