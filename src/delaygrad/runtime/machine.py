"""Measure this machine: its loopback link, and the slowdown of processes that run together."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from delaygrad.boundary import Tree, flatten, unflatten
from delaygrad.launch import Launch, joined, run_workers

_LATENCY_ROUNDS, _BANDWIDTH_ROUNDS = 200, 20
_BANDWIDTH_BYTES = 8 * 2**20
_TURN_S = 0.2  # a turn is as many passes as take about this long
_MIN_ROUNDS, _MAX_ROUNDS = 3, 12


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was measured.

    Args:
        latency_s: seconds of an empty message between two processes, over gloo; None if not
            measured.
        bandwidth_bytes_per_s: of long messages between two processes; None if not measured.
        slowdown: the time of processes that run together / the time of each while the others
            rest; None without work.
        processes: how many ran together.
    """

    latency_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    slowdown: float | None = None
    processes: int = 1


def measure_machine(
    work: Sequence[tuple[nn.Module, Tree]],
    *,
    threads: int = 1,
    link: bool = True,
    budget_s: float = 6.0,
) -> Machine:
    """Start a process for each piece of work (two at least), and measure.

    Args:
        work: stages with their inputs, on the CPU; each process takes one forward and backward.
            Fewer than two measure no slowdown.
        threads: CPU threads of each process.
        link: measure that too.
        budget_s: seconds to spend on the slowdown, if three rounds take less.
    Raises:
        WorkerError: a process failed.
    """
    work = work if len(work) > 1 else []
    launch = Launch(num_workers=max(2, len(work)), threads=threads, timeout_s=120.0)
    with tempfile.TemporaryDirectory() as name:  # of mode 0700
        folder = Path(name)
        for rank, piece in enumerate(work):
            torch.save(piece, folder / f"{rank}.pt")
        found = run_workers(_rank_main, launch, launch, folder, len(work), link, budget_s)
    of_rank_0: Machine = found[0]
    return of_rank_0


def _rank_main(
    launch: Launch, folder: Path, num_pieces: int, link: bool, budget_s: float
) -> Machine:
    with joined(launch, torch.device("cpu")) as rank:
        latency_s, bandwidth = _link(rank) if link else (None, None)
        slowdown = None
        if num_pieces:
            # Written by the process that started this one.
            module, inputs = torch.load(folder / f"{rank}.pt", weights_only=False)
            slowdown = _slowdown(rank, num_pieces, lambda: _pass(module, inputs), budget_s)
        dist.barrier()
    return Machine(
        latency_s=latency_s,
        bandwidth_bytes_per_s=bandwidth,
        slowdown=slowdown,
        processes=max(num_pieces, 1),
    )


def _link(rank: int) -> tuple[float | None, float | None]:
    """Measure latency and bandwidth: half a round trip, and a long message with a short answer.

    Only ranks 0 and 1 take part.
    """
    latency_s = bandwidth = None
    if rank < 2:
        short, long = torch.zeros(1), torch.zeros(_BANDWIDTH_BYTES // 4)
        trip_s = statistics.median(_round_trip(rank, short) for _ in range(_LATENCY_ROUNDS))
        long_s = statistics.median(_round_trip(rank, long) for _ in range(_BANDWIDTH_ROUNDS))
        bandwidth = _BANDWIDTH_BYTES / max(long_s - trip_s, 1e-9)
        latency_s = trip_s / 2
    dist.barrier()
    return latency_s, bandwidth


def _round_trip(rank: int, message: Tensor) -> float:
    answer = torch.zeros(1)
    start = time.perf_counter()
    if rank == 0:
        dist.send(message, dst=1)
        dist.recv(answer, src=1)
    else:
        dist.recv(message, src=0)
        dist.send(answer, dst=0)
    return time.perf_counter() - start


def _slowdown(rank: int, num_ranks: int, work: Callable[[], None], budget_s: float) -> float:
    work()
    once_s = _together_max(_timed(work, 1))
    passes = max(1, round(_TURN_S / once_s))
    rounds = round(budget_s / (passes * once_s * (num_ranks + 1)))
    ratios = []
    for _ in range(min(max(rounds, _MIN_ROUNDS), _MAX_ROUNDS)):
        alone_s = 0.0
        for turn in range(num_ranks):
            dist.barrier()  # waits without computing
            if turn == rank:
                alone_s = _timed(work, passes)
        dist.barrier()
        both = torch.tensor([alone_s, _timed(work, passes)], dtype=torch.float64)
        dist.all_reduce(both)
        ratios.append(float(both[1] / both[0]))
    return statistics.median(ratios)


def _timed(work: Callable[[], None], passes: int) -> float:
    start = time.perf_counter()
    for _ in range(passes):
        work()
    return time.perf_counter() - start


def _together_max(seconds: float) -> float:
    most = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return float(most)


def _pass(module: nn.Module, inputs: Tree) -> None:
    tensors, structure = flatten(inputs)
    outputs: Any = module(unflatten(structure, [tensor.clone() for tensor in tensors]))
    reached = [tensor for tensor in flatten(outputs)[0] if tensor.requires_grad]
    torch.autograd.backward(reached, [torch.ones_like(tensor) for tensor in reached])
    module.zero_grad(set_to_none=True)
    for tensor in tensors:
        tensor.grad = None
