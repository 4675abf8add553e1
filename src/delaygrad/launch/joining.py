"""Join the other ranks: as a worker that ``run_workers`` has started, or under ``torchrun``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from delaygrad.errors import ConfigError, TransportError
from delaygrad.launch.process import end_at_interrupt, end_with_parent, keep_freed_memory

STORE = "DELAYGRAD_STORE"
"""Environment variable of a worker of ``run_workers``: the file in which the ranks meet."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the workers run.

    Attributes:
        num_workers: the ranks.
        threads: CPU threads of each worker.
        timeout_s: seconds that a rank waits for another before it gives up.
    """

    num_workers: int
    threads: int = 1
    timeout_s: float = 600.0


def launched_by_torchrun() -> bool:
    """Say whether a launcher has set this process's rank."""
    return dist.is_torchelastic_launched() or {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def require_single_process() -> None:
    """Raise unless this process is alone: several processes would all write the same results.

    Raises:
        ConfigError: a launcher has started several processes.
    """
    if launched_by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1:
        raise ConfigError(
            f"a launcher started {os.environ['WORLD_SIZE']} processes, but the local runtime needs "
            "one; add --runtime distributed, or run it without torchrun"
        )


def require_gpus(needed: int) -> None:
    """Raise ConfigError unless this host has so many GPUs."""
    found = torch.cuda.device_count()
    if found < needed:
        raise ConfigError(
            f"too few GPUs (found: {found}, needed: {needed}); compute on the CPU, or use fewer "
            "processes"
        )


@contextmanager
def joined(launch: Launch, device: torch.device) -> Iterator[int]:
    """Within the block this process is a rank of the default group; yields the rank.

    SIGINT then ends it at once: Python's own handler would wait for a neighbour's message first.

    Raises:
        ConfigError: the launcher started another number of processes than there are ranks.
        TransportError: the ranks cannot find each other.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size != launch.num_workers:
        raise ConfigError(
            f"the launcher started another number of processes than the run has ranks (started: "
            f"{world_size}, ranks: {launch.num_workers}); launch {launch.num_workers}, or set "
            f"--stages {world_size} or --ranks {world_size}"
        )
    if dist.is_torchelastic_launched():  # the launcher is the parent
        end_with_parent()
    torch.set_num_threads(launch.threads)
    keep_freed_memory()
    on_sigint = signal.getsignal(signal.SIGINT)
    end_at_interrupt()
    backend = "gloo" if device.type == "cpu" else None  # None: gloo for CPU, NCCL for CUDA
    timeout = timedelta(seconds=launch.timeout_s)
    try:
        store, rank = _store(world_size, timeout)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    except (ValueError, RuntimeError) as error:
        raise TransportError(
            f"cannot join the other ranks: {str(error).splitlines()[0]}; start them with torchrun, "
            "and on several hosts set GLOO_SOCKET_IFNAME to the network interface between them"
        ) from error
    yield dist.get_rank()
    # Not after an error: the others would see this rank leave before its own error is on record.
    dist.destroy_process_group()
    signal.signal(signal.SIGINT, on_sigint)


def _store(world_size: int, timeout: timedelta) -> tuple[Store, int]:
    """Return where the ranks meet, and this process's rank.

    Workers of one machine meet in a file that only this user can open. Under torchrun they meet in
    its store, under names that this host's earlier attempts have not used. If torchrun restarts a
    run, the store still has the addresses of the old ranks, and new ranks could find those. (Each
    host counts its own restarts.)
    """
    if STORE in os.environ:
        file_store = FileStore(os.environ[STORE], world_size)
        file_store.set_timeout(timeout)
        return file_store, int(os.environ["RANK"])
    store, rank, _ = next(rendezvous("env://", timeout=timeout))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"delaygrad/attempt {attempt}", store), rank
