"""Run a function on real processes joined by gloo, and bring back what became of each.

Every wait is bounded and every process is dead when a call returns. A rank is the fork of a server
that has imported delaygrad, and torch with it, and done nothing else: that takes a tenth of a
second, importing torch takes two. Its environment is that of the first call of the session.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import multiprocessing
import multiprocessing.connection
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from delaygrad.launch import end_with_parent, fork_server

POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class RankOutcome:
    """What became of one rank.

    Args:
        result: what the function returned; None if it did not return.
        error: text of the exception that the function raised, with its traceback, or None.
        exit_code: 0 after a return, 1 after an exception, ``-signal`` if killed.
        elapsed_s: from the moment the first rank found the group complete until this one
            returned, raised or died; from the start if the group never was complete.
        timed_out: it was still running at the timeout, and was killed then.
    """

    rank: int
    result: Any = None
    error: str | None = None
    exit_code: int | None = None
    elapsed_s: float = 0.0
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and self.error is None and not self.timed_out


def run_ranks(
    fn: Callable[..., Any], world_size: int, *, timeout_s: float = 60, args: Sequence[Any] = ()
) -> list[Any]:
    """Call ``fn(rank, world_size, *args)`` on every rank and return the results in rank order.

    Args:
        fn: defined at the top level of its module, so that a fresh process can find it.
        timeout_s: seconds for everything, start-up included.
        args: picklable; the same for all ranks.
    Raises:
        RuntimeError: a rank raised or died; the first one to do so, with its traceback. The
            others are killed at once.
        TimeoutError: some ranks were still running after ``timeout_s``.
    """
    outcomes = _run(fn, world_size, timeout_s, args, kill=None, stop_at_first_failure=True)
    # Those still running when we stopped are no culprits. A process that died without a word is
    # never the consequence of a peer's failure; an exception may be.
    failed = [o for o in outcomes if o.error is not None or not (o.ok or o.timed_out)]
    if failed:
        first = min(failed, key=lambda o: (o.error is not None, o.elapsed_s))
        reason = first.error or f"exit code {first.exit_code}, no traceback"
        raise RuntimeError(f"rank {first.rank} of {world_size} failed: {reason}")
    late = [o.rank for o in outcomes if o.timed_out]
    if late:
        raise TimeoutError(f"ranks {late} of {world_size} still running after {timeout_s} s")
    return [o.result for o in outcomes]


def run_ranks_raw(
    fn: Callable[..., Any],
    world_size: int,
    *,
    timeout_s: float = 60,
    args: Sequence[Any] = (),
    kill: tuple[int, float] | None = None,
) -> list[RankOutcome]:
    """Like `run_ranks`, but let every rank come to its own end, and report instead of raising.

    Args:
        kill: ``(rank, after_s)``: SIGKILL this rank so many seconds after all ranks have joined
            the group.
    """
    return _run(fn, world_size, timeout_s, args, kill=kill, stop_at_first_failure=False)


def _run(
    fn: Callable[..., Any],
    world_size: int,
    timeout_s: float,
    args: Sequence[Any],
    *,
    kill: tuple[int, float] | None,
    stop_at_first_failure: bool,
) -> list[RankOutcome]:
    context = fork_server()
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        (folder / "call").write_bytes(_pack_call(fn, args))
        processes: list[BaseProcess] = []
        try:
            for rank in range(world_size):
                process = context.Process(
                    target=_be_rank, args=(rank, world_size, name, timeout_s), daemon=True
                )
                process.start()
                processes.append(process)
            return _watch(processes, folder, timeout_s, kill, stop_at_first_failure)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _watch(
    processes: list[BaseProcess],
    folder: Path,
    timeout_s: float,
    kill: tuple[int, float] | None,
    stop_at_first_failure: bool,
) -> list[RankOutcome]:
    """Wait for the processes to end; the only place that decides when to stop waiting."""
    start = time.monotonic()
    complete: float | None = None
    ended: dict[int, float] = {}
    late: set[int] = set()
    while len(ended) < len(processes):
        running = [p.sentinel for r, p in enumerate(processes) if r not in ended]
        multiprocessing.connection.wait(running, timeout=POLL_S)
        now = time.monotonic()
        joined = [folder / f"joined-{rank}" for rank in range(len(processes))]
        if complete is None and all(path.exists() for path in joined):
            complete = min(torch.load(path) for path in joined)
        for rank, process in enumerate(processes):
            if rank not in ended and not process.is_alive():
                ended[rank] = now
        failure = any(processes[rank].exitcode != 0 for rank in ended)
        if now - start > timeout_s or (stop_at_first_failure and failure):
            late = {rank for rank in range(len(processes)) if rank not in ended}
            for rank in late:
                processes[rank].kill()
                processes[rank].join()
                ended[rank] = now
        if kill is not None and complete is not None and now - complete >= kill[1]:
            processes[kill[0]].kill()
            kill = None
    began = start if complete is None else complete
    return [
        _read_outcome(rank, process, folder, began, ended[rank], rank in late)
        for rank, process in enumerate(processes)
    ]


def _read_outcome(
    rank: int, process: BaseProcess, folder: Path, began: float, ended: float, late: bool
) -> RankOutcome:
    result, error = None, None
    path = folder / f"outcome-{rank}"
    if path.exists():
        result, error, ended = torch.load(path, weights_only=False)
    return RankOutcome(
        rank=rank,
        result=result,
        error=error,
        exit_code=process.exitcode,
        elapsed_s=ended - began,
        timed_out=late,
    )


def _pack_call(fn: Callable[..., Any], args: Sequence[Any]) -> bytes:
    """Pickle the call so that a fresh process finds `fn` in a file that no import path leads to.

    The location and the warning filters travel as plain values; the arguments, which may be of
    classes from the same file, as bytes to be opened after that file is loaded.
    """
    name = getattr(fn, "__qualname__", "<locals>")
    if "<" in name:
        raise TypeError(f"not a top-level function ({fn!r}); define it with def in its module")
    module = sys.modules[fn.__module__]
    packed_args = io.BytesIO()
    torch.save(tuple(args), packed_args)
    filters = [
        # Patterns are compiled, absent, or (Python's own filters) plain text.
        (action, getattr(message, "pattern", ""), category, getattr(where, "pattern", where), line)
        for action, message, category, where, line in warnings.filters
    ]
    return pickle.dumps((module.__name__, module.__file__, name, packed_args.getvalue(), filters))


def _load_module(name: str, file: str) -> ModuleType:
    """Import the module from its own file, whatever pytest's import mode has called it."""
    try:
        module = importlib.import_module(name)
        if module.__file__ is not None and Path(module.__file__).samefile(file):
            return module
    except ModuleNotFoundError:
        pass
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Opening a pickle imports the parents of a dotted name as well; pytest, too, makes them up.
    for end in (i for i, letter in enumerate(name) if letter == "."):
        sys.modules.setdefault(name[:end], ModuleType(name[:end]))
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _be_rank(rank: int, world_size: int, folder_name: str, timeout_s: float) -> None:
    """Run in the child: join the group, call the function, leave an outcome file."""
    folder = Path(folder_name)
    end_with_parent()
    torch.set_num_threads(1)
    error = None
    try:
        call = pickle.loads((folder / "call").read_bytes())
        module_name, module_file, fn_name, packed_args, filters = call
        fn: Any = _load_module(module_name, module_file)
        for attribute in fn_name.split("."):
            fn = getattr(fn, attribute)
        args = torch.load(io.BytesIO(packed_args), weights_only=False)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'rendezvous'}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        _leave(folder / f"joined-{rank}", time.monotonic())
        warnings.resetwarnings()
        for action, message, category, where, line in reversed(filters):
            warnings.filterwarnings(action, message, category, where or "", line)
        result = fn(rank, world_size, *args)
        _leave(folder / f"outcome-{rank}", (result, None, time.monotonic()))
    except SystemExit:
        raise
    except BaseException:  # pytest's own failures are no Exception
        raised = time.monotonic()
        error = traceback.format_exc()
        _leave(folder / f"outcome-{rank}", (None, error, raised))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if error is not None:
        sys.exit(1)


def _leave(path: Path, value: Any) -> None:
    # A file, not a queue: nothing to drain before a join, and whole or absent if we are killed.
    # Times in it are comparable with the parent's: one machine, one monotonic clock.
    part = path.with_suffix(".part")
    torch.save(value, part)
    part.replace(path)
