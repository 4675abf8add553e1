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
        chunk_cuts: between 2K stages, for schedules with two stages per rank; None: no such cuts.
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
    """Loss of the last iteration's batch, without its graph; None if another rank has it."""

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
        """Return the seconds that this rank has spent on each activity so far, if measured."""
        return {}


@dataclass(frozen=True)
class Entry:
    """A contestant before the contest.

    Attributes:
        name: as on the command line.
        title: in words.
        family: group of contestants for comparisons.
        start: sets the contestant up on this rank.
        alone: the contestant runs on rank 0; the other ranks wait.
        all_cores: it uses a thread on every core, not ``Setting.threads``.
        chunked: it needs ``Setting.chunk_cuts``.
        independent: each rank trains on its own batches, so an iteration trains on K batches.
    """

    name: str
    title: str
    family: Family
    start: Callable[[Setting], Contestant]
    alone: bool = False
    all_cores: bool = False
    chunked: bool = False
    independent: bool = False
