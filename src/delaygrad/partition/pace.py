"""Predict the time of an iteration by playing the timetable with given times.

Every stage works alone, in the order of the timetable: in tick t forward of micro-batch t, then
backward of micro-batch t - lag(k), then after the last one of a batch the update. It waits for the
activation from below and the error gradient from above; messages of one direction follow each
other over the link.

With two stages, slack 0, equal times S = f + b + u and c from one stage to the other this gives
S + c: the loop from a forward of stage 0 over stage 1 to the backward that needs its error gradient
and on to the next but one forward takes 2S + 2c and spans two iterations. Over m boundaries the
loop takes (m+1)S + 2mc in 1 + m(1 + slack) iterations: with many stages 2c are exposed, and none
while 2c ≤ slack · S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from delaygrad.partition.costs import Seconds
from delaygrad.partition.link import Link

__all__ = ["Boundary", "iteration_s"]

_MEASURED = 120  # iterations, beside some fills; few would count half a loop as a whole one


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
    lags: Sequence[int],
    *,
    boundaries: Sequence[Boundary] = (),
    link: Link | None = None,
    micro_batches: int = 1,
) -> float:
    """Predict the seconds of an iteration in steady state.

    Args:
        stages: times of each stage for one batch.
        lags: of each stage, in ticks; all 0 is backpropagation.
        boundaries: K-1, between the stages; with the link.
        link: between each two neighbours; None costs nothing.
        micro_batches: M per update; each takes 1/M of the times but the update's.
    Example:
        >>> stage = Seconds(forward_s=1.0, backward_s=2.0)
        >>> iteration_s([stage, stage], lags=[1, 0]), iteration_s([stage, stage], lags=[0, 0])
        (3.0, 6.0)
    """
    play = _Play(stages, lags, boundaries, link, micro_batches)
    depth = max(lags) + len(stages) + 1
    warm_up, measured = 3 * depth, 8 * depth + _MEASURED
    start = play.run(warm_up * micro_batches)
    end = play.run(measured * micro_batches)
    # A stage with a backlog from the fill still runs ahead of the steady state, none behind it.
    return max(late - early for early, late in zip(start, end, strict=True)) / measured


class _Play:
    """The stages at work, tick by tick."""

    def __init__(
        self,
        stages: Sequence[Seconds],
        lags: Sequence[int],
        boundaries: Sequence[Boundary],
        link: Link | None,
        micro_batches: int,
    ) -> None:
        self._stages, self._lags, self._parts = stages, lags, micro_batches
        num_stages = len(stages)
        self._tick = 0
        self._free = [0.0] * num_stages  # when each stage has done all before
        down = [boundary.activation_bytes for boundary in boundaries]
        up = [boundary.gradient_bytes for boundary in boundaries]
        gaps = [0.0] * (num_stages - 1)
        self._down = [_Wire(link, size / micro_batches) for size in (down or gaps)]
        self._up = [_Wire(link, size / micro_batches) for size in (up or gaps)]

    def run(self, num_ticks: int) -> list[float]:
        """Play on; return when each stage has done all."""
        for tick in range(self._tick, self._tick + num_ticks):
            for k in range(len(self._stages)):
                self._forward(k, tick)
            for k in reversed(range(len(self._stages))):
                if tick >= self._lags[k]:
                    self._backward(k, tick - self._lags[k])
        self._tick += num_ticks
        return list(self._free)

    def _forward(self, k: int, batch: int) -> None:
        arrived = self._down[k - 1].arrivals.pop(batch) if k > 0 else 0.0
        self._free[k] = max(self._free[k], arrived) + self._stages[k].forward_s / self._parts
        if k < len(self._down):
            self._down[k].send(batch, self._free[k])

    def _backward(self, k: int, batch: int) -> None:
        arrived = self._up[k].arrivals.pop(batch) if k < len(self._up) else 0.0
        self._free[k] = max(self._free[k], arrived) + self._stages[k].backward_s / self._parts
        if k > 0:
            self._up[k - 1].send(batch, self._free[k])
        if (batch + 1) % self._parts == 0:
            self._free[k] += self._stages[k].update_s


class _Wire:
    """One direction of a link."""

    def __init__(self, link: Link | None, num_bytes: float) -> None:
        self._transfer_s = link.transfer_s(num_bytes) if link else 0.0
        self._latency_s = link.latency_s if link else 0.0
        self._free = 0.0
        self.arrivals: dict[int, float] = {}

    def send(self, batch: int, now: float) -> None:
        self._free = max(self._free, now) + self._transfer_s
        self.arrivals[batch] = self._free + self._latency_s
