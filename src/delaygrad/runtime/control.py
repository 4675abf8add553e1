"""Messages between the ranks of a run other than training itself: results and losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from delaygrad.errors import TransportError
from delaygrad.records import ClockReading
from delaygrad.runtime import exchange
from delaygrad.runtime.clock_sync import read_clocks
from delaygrad.transport import Message
from delaygrad.transport.wire import Wire, WireReceiver, WireSender, reason_of


class Control(ABC):
    """What processes of a run tell each other. Rank 0 reports; the last rank knows the losses."""

    rank: int
    size: int

    @property
    def is_reporter(self) -> bool:
        """Whether this process writes the run folder and talks to the user."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this process holds the last stage."""
        return self.rank == self.size - 1

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Collect one value from each rank on rank 0 (elsewhere empty); all ranks call it.

        Args:
            value: anything that JSON can hold; with several ranks a tuple becomes a list.
        """

    @abstractmethod
    def gather_tensors(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Collect named tensors from each rank on rank 0 (elsewhere empty); all ranks call it."""

    @abstractmethod
    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank; all ranks call it. Values are as for ``gather``."""

    def share(self, value: Any) -> list[Any]:
        """Return the values of all ranks on every rank; all ranks call it."""
        shared: list[Any] = self.broadcast(self.gather(value))
        return shared

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        self.gather(None)
        self.broadcast(None)

    @abstractmethod
    def read_clocks(self) -> list[ClockReading]:
        """Compare all ranks' clocks with rank 0's, on rank 0 (elsewhere empty); all ranks call."""

    @abstractmethod
    def send_losses(self, losses: list[float]) -> None:
        """On the last rank: hand losses to rank 0, without waiting for it."""

    @abstractmethod
    def receive_losses(self) -> list[float]:
        """On rank 0: return what the last rank sent, and wait for it if necessary."""


class Solo(Control):
    """One process that holds all stages."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._losses: deque[list[float]] = deque()

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def gather_tensors(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [tensors]

    def broadcast(self, value: Any) -> Any:
        return value

    def read_clocks(self) -> list[ClockReading]:
        return [ClockReading(0, 0, 0)]

    def send_losses(self, losses: list[float]) -> None:
        self._losses.append(losses)

    def receive_losses(self) -> list[float]:
        return self._losses.popleft()


class Ranks(Control):
    """The ranks of the default process group.

    Args:
        timeout_s: seconds to wait for another rank.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._values, reports = _gloo_group(timeout_s), _gloo_group(timeout_s)
        self._mine: deque[list[float]] = deque()  # a single rank is both ends
        self._sender = self._receiver = None
        if self.size > 1 and self.rank in (0, self.size - 1):
            peer = self.size - 1 - self.rank
            name = f"{'from' if self.rank == 0 else 'to'} rank {peer}"
            cpu = torch.device("cpu")
            wire = Wire(peer, name, "a loss report", reports, reports, cpu, timeout_s)
            if self.rank == 0:
                self._receiver = WireReceiver(wire)
            else:
                self._sender = WireSender(wire)

    def gather(self, value: Any) -> list[Any]:
        with self._together():
            return exchange.gather(value, self._values)

    def gather_tensors(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        with self._together():
            return exchange.gather_tensors(tensors, self._values)

    def broadcast(self, value: Any) -> Any:
        with self._together():
            return exchange.broadcast(value, self._values)

    def read_clocks(self) -> list[ClockReading]:
        with self._together():
            return read_clocks(self._values)

    def send_losses(self, losses: list[float]) -> None:
        if self._sender is None:
            self._mine.append(losses)
        else:
            self._sender.send(Message(0, (torch.tensor(losses, dtype=torch.float64),)))

    def receive_losses(self) -> list[float]:
        if self._receiver is None:
            return self._mine.popleft()
        (losses,) = self._receiver.receive().tensors
        assert losses is not None
        return [float(loss) for loss in losses]

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            others = (f"rank {rank}" for rank in range(self.size) if rank != self.rank)
            raise TransportError(
                f"[rank {self.rank}] waiting for all ranks failed: one of "
                f"{', '.join(others)} is gone or late; see its own error ({reason_of(error)})"
            ) from error


def _gloo_group(timeout_s: float) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup)
    return group
