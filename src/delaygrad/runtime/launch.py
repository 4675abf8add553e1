"""Start one worker process per stage on this machine, through torch's own elastic launcher.

Under ``torchrun`` (several hosts) the processes are there already; then nothing is started.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous

from delaygrad import errors
from delaygrad.errors import ConfigError, TransportError, WorkerError
from delaygrad.runtime.allocator import keep_freed_memory
from delaygrad.runtime.lifetime import born_deaf_to_interrupts, end_with_parent

_LAUNCHER_LOGGERS = (
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.agent.server.api",
    "torch.multiprocessing.spawn",
)
_POLL_S = 0.2


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


def require_single_process() -> None:
    """Raise unless this process is alone: several would do, and write, the same thing.

    Raises:
        ConfigError: a launcher has started several.
    """
    if launched_by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1:
        raise ConfigError(
            f"a launcher started {os.environ['WORLD_SIZE']} processes, but the local runtime needs "
            "one; add --runtime distributed, or run it without torchrun"
        )


@contextmanager
def joined(launch: Launch, device: torch.device) -> Iterator[int]:
    """Within the block this process is a rank of the default group; yields the rank.

    SIGINT then ends it at once: Python's own handler would wait for a neighbour's message first.

    Raises:
        ConfigError: the launcher started another number of processes than there are stages.
        TransportError: the ranks cannot find each other.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size != launch.num_workers:
        raise ConfigError(
            f"the number of ranks must be the number of stages (ranks: {world_size}, stages: "
            f"{launch.num_workers}); set --stages {world_size} or launch {launch.num_workers} ranks"
        )
    if dist.is_torchelastic_launched():  # the launcher is the parent
        end_with_parent()
    torch.set_num_threads(launch.threads)
    keep_freed_memory()
    on_sigint = signal.signal(signal.SIGINT, signal.SIG_DFL)
    backend = "gloo" if device.type == "cpu" else None  # None: gloo for CPU, NCCL for CUDA
    try:
        _join(backend, timedelta(seconds=launch.timeout_s))
    except (ValueError, RuntimeError) as error:
        raise TransportError(
            f"cannot join the other ranks: {str(error).splitlines()[0]}; start them with torchrun, "
            "and on several hosts set GLOO_SOCKET_IFNAME to the network interface between them"
        ) from error
    yield dist.get_rank()
    # Not after an error: the others would see this rank leave before its own error is on record.
    dist.destroy_process_group()
    signal.signal(signal.SIGINT, on_sigint)


def _join(backend: str | None, timeout: timedelta) -> None:
    """Initialise the default group, under names that this host's earlier attempts have not used.

    Where torchrun restarts a run, its store still has the addresses of the ranks that ended, and
    the new ones may meet those before their own. (Hosts count their restarts each for itself.)
    """
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"delaygrad/attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def run_workers(entry: Callable[..., Any], launch: Launch, *args: Any) -> dict[int, Any]:
    """Run ``entry(*args)`` in one new process per stage, and wait for all of them.

    If one fails, the others are ended; if this process is killed, all of them are.

    Args:
        entry: a module-level function; it calls ``joined``.
        launch: how many processes, and how they run.
        args: picklable.

    Returns:
        What each rank returned, by rank.

    Raises:
        WorkerError: a worker failed; says which stage, and its own message, or the signal.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(launch.threads))
    stopped_by: signal.Signals | None = None
    results: dict[int, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="delaygrad-") as folder,  # where errors are left
        _quiet_launcher(),
        born_deaf_to_interrupts(),
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=launch.num_workers,
            run_id=f"delaygrad-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=_POLL_S,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            results = elastic_launch(config, _enter)(entry, *args)
        except ChildFailedError as error:
            raise _explain(error) from None
        except SignalException as error:
            stopped_by = error.sigval
    if stopped_by is not None:
        signal.raise_signal(stopped_by)  # the workers are gone; now as in a run without them
    return results


def _enter(entry: Callable[..., Any], *args: Any) -> Any:
    """Be a worker."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        return record(entry)(*args)
    except TransportError:
        time.sleep(5 * _POLL_S)  # let the launcher first see the neighbour whose end this tells of
        sys.exit(1)
    except Exception:
        sys.exit(1)  # it is on record; another traceback would be left in the temporary folder


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
    text = rest if ours else text
    explained = WorkerError(text if text.startswith("[") else f"[stage {rank}, rank {rank}] {text}")
    if not ours:  # unforeseen: its traceback is worth showing
        explained.add_note(message.get("extraInfo", {}).get("py_callstack", ""))
    return explained
