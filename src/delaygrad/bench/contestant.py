"""What a contestant is: a way of training the workload, one iteration at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch.distributed as dist
from torch import Tensor

from delaygrad.bench.workload import Workload

Family: TypeAlias = Literal["bp", "ceiling", "pipeline", "ddp", "ddg"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every contestant is given, on every rank.

    Attributes:
        cuts: between the K stages.
        chunk_cuts: between 2K stages, for schedules that give each rank two; None: there are none.
        rank: of this process, 0..K-1; also its stage.
        num_stages: K.
        threads: of each worker process.
        cores: threads of the contestants that take the whole machine.
        group: the ranks, in a process group that no other contestant uses.
        timeout_s: seconds to wait for another rank.
    """

    workload: Workload
    cuts: list[str]
    chunk_cuts: list[str] | None
    rank: int
    num_stages: int
    threads: int
    cores: int
    group: dist.ProcessGroup | None
    timeout_s: float


class Contestant(ABC):
    """A way of training, set up and ready to run; made on every rank that takes part."""

    fill: int = 0
    """Iterations until every stage works in every iteration."""
    last_loss: Tensor | None = None
    """Of the last iteration's batch, without its graph; None where another rank has it."""

    @abstractmethod
    def step(self) -> None:
        """Run this rank's part of one iteration: forward, backward, update."""

    def loss(self) -> float | None:
        """Return the loss of the last iteration's batch; None where another rank knows it."""
        return None if self.last_loss is None else float(self.last_loss)

    def finish(self) -> None:
        """Finish what is in flight; called after every turn, outside the measured time."""
        return

    def stage_seconds(self) -> dict[str, float]:
        """Return the seconds that this rank has spent on each activity so far, if it counts."""
        return {}


@dataclass(frozen=True)
class Entry:
    """A contestant before the contest.

    Attributes:
        name: as on the command line.
        title: in words.
        family: what it is compared as.
        start: set it up on this rank.
        alone: it runs on rank 0; the other ranks wait.
        all_cores: it uses a thread on every core, not ``Setting.threads``.
        chunked: it needs ``Setting.chunk_cuts``.
        independent: every rank trains on batches of its own, so K are done in an iteration.
    """

    name: str
    title: str
    family: Family
    start: Callable[[Setting], Contestant]
    alone: bool = False
    all_cores: bool = False
    chunked: bool = False
    independent: bool = False
