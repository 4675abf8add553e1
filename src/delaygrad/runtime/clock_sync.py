"""Compare the clocks of several hosts, as NTP does: ask for the time, and measure the round trip.

    rank 0   t0 ----> ........ ----> t1          rank r's clock showed t when rank 0's showed
    rank r          t                            something between t0 and t1

So rank r is ahead by t - (t0 + t1)/2, with an error of at most (t1 - t0)/2. Of several rounds the
quickest is the most accurate. On one host all processes have one clock, and the offset is near 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from delaygrad.records import ClockReading

_ROUNDS = 40


def read_clocks(
    group: dist.ProcessGroup, now: Callable[[], int] = time.perf_counter_ns
) -> list[ClockReading]:
    """Read the clock of every rank; all ranks of the default group call it at the same point.

    Args:
        group: of all ranks, on the CPU (gloo).
        now: this rank's clock, in nanoseconds; by default that of ``StageClock``.

    Returns:
        One reading per rank on rank 0; elsewhere empty.

    Raises:
        RuntimeError: a rank is gone or late.
    """
    if dist.get_rank() != 0:
        for _ in range(_ROUNDS):
            dist.recv(torch.empty(1, dtype=torch.int64), src=0, group=group)
            dist.send(torch.tensor([now()]), dst=0, group=group)
        return []
    here = ClockReading(now(), 0, 0)
    ranks = range(1, dist.get_world_size())
    return [here, *(_quickest(rank, group, now) for rank in ranks)]


def _quickest(rank: int, group: dist.ProcessGroup, now: Callable[[], int]) -> ClockReading:
    question, answer = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    readings = []
    for _ in range(_ROUNDS):
        start_ns = now()
        dist.send(question, dst=rank, group=group)
        dist.recv(answer, src=rank, group=group)
        end_ns = now()
        local_ns = int(answer)
        offset_ns = local_ns - (start_ns + end_ns) // 2
        readings.append(ClockReading(local_ns, offset_ns, -(-(end_ns - start_ns) // 2)))
    return min(readings, key=lambda reading: reading.uncertainty_ns)
