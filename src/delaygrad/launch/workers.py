"""Start one worker process per rank on this machine.

    launcher -- fork server (has imported torch and delaygrad) -- worker 0, 1, ...
        \\______________ a pipe from each worker: its result, or its error ______________/

A worker is a fork of the server. It starts in a tenth of a second; importing torch takes seconds.

The workers meet in a file in a folder that only this user can open. Their sockets are bound to the
loopback interface. No port is open to another machine, and data from a socket is never unpickled.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from delaygrad.errors import DelaygradError, TransportError, WorkerError
from delaygrad.launch.joining import STORE, Launch
from delaygrad.launch.process import end_at_interrupt, end_with_parent

_BLAME_S = 1.0  # how long an error that tells of another's end waits for the other's own
_EXIT_S = 10.0
_SLOW_IMPORTS = ("torch._dynamo",)  # what the first optimizer of a process imports


@dataclass(frozen=True)
class _Outcome:
    """The outcome of a worker's call: a pickled result, or an error."""

    result: bytes | None = None
    message: str = ""
    callstack: str = ""
    is_consequence: bool = False  # of what happened to another worker


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    outcome: Connection


def run_workers(entry: Callable[..., Any], launch: Launch, *args: Any) -> dict[int, Any]:
    """Run ``entry(*args)`` in one new process per rank, and wait for all of them.

    If one worker fails, the others are ended. If this process is killed, all workers end. The
    workers have this process's environment variables. But variables that libraries read at import
    have the values from when the first workers started.

    Args:
        entry: a module-level function; it calls ``joined``.
        launch: how many processes, and how they run.
        args: picklable.

    Returns:
        What each rank returned, by rank.

    Raises:
        WorkerError: a worker failed; names the rank and its message or signal.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(launch.threads))
    context = fork_server()
    call = pickle.dumps((entry, args))
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="delaygrad-workers-") as folder:  # of mode 0700
        try:
            for rank in range(launch.num_workers):
                environment = _environment(Path(folder, "store"), rank, launch.num_workers)
                workers.append(_start(context, environment, call))
            return {rank: pickle.loads(result) for rank, result in _results(workers).items()}
        finally:
            for worker in workers:
                if worker.process.is_alive():
                    worker.process.kill()
            for worker in workers:
                worker.process.join()
                worker.outcome.close()


def fork_server() -> ForkServerContext:
    """Start the server whose forks the workers are, if it does not run yet.

    The server imports the same modules of delaygrad as this process, and exits with this process.
    Ctrl-C, which the terminal sends to all processes, does not reach the server, nor a worker that
    is not ready.
    """
    context = get_context("forkserver")
    ours = sorted(name for name in sys.modules if name.startswith("delaygrad"))
    context.set_forkserver_preload([*ours, *_SLOW_IMPORTS])
    resource_tracker.ensure_running()  # before: its start would unblock SIGINT again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


def _environment(store: Path, rank: int, num_workers: int) -> dict[str, str]:
    """Return a worker's variables. All sockets of gloo and NCCL are bound to the loopback."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    return {
        **os.environ,
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        STORE: str(store),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_workers),
    }


def _start(context: ForkServerContext, environment: dict[str, str], call: bytes) -> _Worker:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_be_worker, args=(there, environment, call))
    process.start()
    there.close()  # so that the worker's end is the only one
    return _Worker(process, here)


def _be_worker(outcome: Connection, environment: dict[str, str], call: bytes) -> None:
    """Run in the worker: make the call, and send its outcome to the launcher."""
    end_at_interrupt()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    try:
        entry, args = pickle.loads(call)
        outcome.send(_Outcome(result=pickle.dumps(entry(*args))))
    except Exception as error:
        ours = isinstance(error, DelaygradError)
        outcome.send(
            _Outcome(
                message=str(error) if ours else f"{type(error).__name__}: {error}",
                callstack="" if ours else traceback.format_exc(),
                is_consequence=isinstance(error, TransportError)
                or (not ours and isinstance(error, RuntimeError)),  # gloo's own
            )
        )
        outcome.close()
        os._exit(1)  # without waiting for threads of the failed call


def _results(workers: list[_Worker]) -> dict[int, bytes]:
    """Wait until all workers have returned, or raise for the first that failed."""
    results: dict[int, bytes] = {}
    running = dict(enumerate(workers))
    blamed: WorkerError | None = None
    deadline_s: float | None = None
    while running:
        ends = [end for w in running.values() for end in (w.outcome, w.process.sentinel)]
        left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        ready = connection.wait(ends, left_s)
        if not ready:
            break
        for rank, worker in list(running.items()):
            if worker.outcome not in ready and worker.process.sentinel not in ready:
                continue
            del running[rank]
            outcome = _outcome_of(worker)
            if outcome.result is not None:
                results[rank] = outcome.result
            elif not outcome.is_consequence:
                raise _explain(rank, outcome)
            elif blamed is None:
                blamed, deadline_s = _explain(rank, outcome), time.monotonic() + _BLAME_S
    if blamed is not None:
        raise blamed
    for worker in workers:
        worker.process.join(_EXIT_S)
    return results


def _outcome_of(worker: _Worker) -> _Outcome:
    try:
        outcome: _Outcome = worker.outcome.recv()
        return outcome
    except EOFError:
        worker.process.join()
    code = worker.process.exitcode or 0
    end = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited (code: {code})"
    return _Outcome(message=f"the worker {end}; the others were stopped")


def _explain(rank: int, outcome: _Outcome) -> WorkerError:
    text = outcome.message
    explained = WorkerError(text if text.startswith("[") else f"[rank {rank}] {text}")
    if outcome.callstack:  # unforeseen: worth showing
        explained.add_note(outcome.callstack)
    return explained
