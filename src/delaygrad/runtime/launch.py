"""Start one worker process per stage on this machine, through torch's own elastic launcher.

Under ``torchrun`` (several hosts) the processes are there already; then nothing is started.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from delaygrad import errors
from delaygrad.errors import ConfigError, WorkerError

_LAUNCHER_LOGGERS = (
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.agent.server.api",
    "torch.multiprocessing.spawn",
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the workers run.

    Attributes:
        num_workers: one per stage.
        threads: CPU threads of each worker.
        timeout_s: seconds that a rank waits for another before it gives up.
    """

    num_workers: int
    threads: int = 1
    timeout_s: float = 600.0


def launched_by_torchrun() -> bool:
    """Say whether a launcher has set this process's rank."""
    return dist.is_torchelastic_launched() or {"RANK", "WORLD_SIZE"} <= os.environ.keys()


@contextmanager
def joined(launch: Launch, device: torch.device) -> Iterator[int]:
    """Within the block this process is a rank of the default group; yields the rank.

    Raises:
        ConfigError: the launcher started another number of processes than there are stages.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size != launch.num_workers:
        raise ConfigError(
            f"the number of ranks must be the number of stages (ranks: {world_size}, stages: "
            f"{launch.num_workers}); set --stages {world_size} or launch {launch.num_workers} ranks"
        )
    torch.set_num_threads(launch.threads)
    backend = "gloo" if device.type == "cpu" else None  # None: gloo for CPU, NCCL for CUDA
    dist.init_process_group(backend, timeout=timedelta(seconds=launch.timeout_s))
    yield dist.get_rank()
    # Not after an error: the others would see this rank leave before its own error is on record.
    dist.destroy_process_group()


def run_workers(entry: Callable[..., Any], launch: Launch, *args: Any) -> dict[int, Any]:
    """Run ``entry(*args)`` in one new process per stage, and wait for all of them.

    If one fails, the others are ended.

    Args:
        entry: a module-level function; it calls ``joined``.
        launch: how many processes, and how they run.
        args: picklable.

    Returns:
        What each rank returned, by rank.

    Raises:
        WorkerError: a worker failed; says which stage, and its own message, or the signal.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=launch.num_workers,
        run_id=f"delaygrad-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(launch.threads))
    try:
        with _quiet_launcher():
            results: dict[int, Any] = elastic_launch(config, _enter)(entry, *args)
    except ChildFailedError as error:
        raise _explain(error) from None
    return results


@record
def _enter(entry: Callable[..., Any], *args: Any) -> Any:
    return entry(*args)


@contextmanager
def _quiet_launcher() -> Iterator[None]:
    """Within the block, torch's launcher does not log failures: they are raised, once."""
    loggers = [logging.getLogger(name) for name in _LAUNCHER_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _explain(error: ChildFailedError) -> WorkerError:
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return WorkerError(
            f"[stage {rank}, rank {rank}] the worker was ended by {name}; the others were stopped"
        )
    message = failure.message
    if not isinstance(message, dict):
        return WorkerError(f"[stage {rank}, rank {rank}] {message}")
    text: str = message["message"]
    kind, _, rest = text.partition(": ")
    ours = isinstance(getattr(errors, kind, None), type)
    explained = WorkerError(rest if ours and rest.startswith("[") else f"[rank {rank}] {text}")
    if not ours:  # unforeseen: its traceback is worth showing
        explained.add_note(message.get("extraInfo", {}).get("py_callstack", ""))
    return explained
