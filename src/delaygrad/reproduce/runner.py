"""Make many runs, a few at a time, each in a process of its own; stop and continue at any moment.

Finished runs stay. Runs with a checkpoint are resumed; interrupted ones without a checkpoint begin
anew. A run that diverged is a result. A run that fails does not stop the others. A user at a
terminal sees a line for all runs and one for each active run.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from delaygrad.errors import DelaygradError, PartitionError
from delaygrad.launch import (
    end_with_parent,
    fork_server,
    keep_freed_memory,
    require_gpus,
    usable_cores,
)
from delaygrad.reproduce import run_state
from delaygrad.reproduce.grid import PlannedRun
from delaygrad.reproduce.target import Failure
from delaygrad.training import TrainConfig, resume, run_folder, train
from delaygrad.training.assembly import build_stages
from delaygrad.training.run_folder import RunLock

_MEMORY_S = 1800.0  # of the estimate of the time left
_POLL_S = 0.1
_GRACE_S = 10.0  # for a run that was told to stop


class RunsProgress:
    """A line for all runs and a line for each active one; without a terminal, a line per run.

    The unit is an epoch.

    Args:
        runs: that are to be made.
        quiet: show nothing.
    """

    def __init__(self, runs: Sequence[PlannedRun], *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._epochs = {run.label: _epochs(run) for run in runs}
        self._done = {run.label: _epochs_done(run) for run in runs}
        self._ended = 0
        self._tasks: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            speed_estimate_period=_MEMORY_S,
        )
        self._all = self._bar.add_task("all", total=sum(self._epochs.values()), state="")

    def __enter__(self) -> RunsProgress:
        self._update()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, run: PlannedRun) -> None:
        """Show how far an active run is."""
        name = run.label
        self._done[name] = done = _epochs_done(run)
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=self._epochs[name], state="")
        state = f"epoch {done:.1f} of {self._epochs[name]:g}"
        self._bar.update(self._tasks[name], completed=done, state=state)
        self._update()

    def ended(self, run: PlannedRun, text: str) -> None:
        """Show a run as ended: finished, diverged, or failed with a message."""
        name = run.label
        self._ended += 1
        self._done[name] = self._epochs[name]
        self._bar.remove_task(self._tasks.pop(name))
        self._update()
        self._console.print(f"{name}: {text}", highlight=False, markup=False, soft_wrap=True)

    def _update(self) -> None:
        state = f"{self._ended} of {len(self._done)} runs"
        self._bar.update(self._all, completed=sum(self._done.values()), state=state)


def _epochs(run: PlannedRun) -> float:
    return 1.0 if run.config.run.iterations else float(run.config.run.epochs)


def _epochs_done(run: PlannedRun) -> float:
    """Return how much of a run is on record, in the unit of ``_epochs``."""
    event = run_state.position(run.run_dir)
    if run.config.run.iterations:
        return float(event.get("iteration", 0) / run.config.run.iterations)
    return float(event.get("epoch", 0.0))


def make_runs(runs: Sequence[PlannedRun], workers: int | None, *, quiet: bool) -> list[Failure]:
    """Make the runs that have no result yet, some at a time; return those that failed.

    By default, as many at a time as there are CPU cores, or GPUs. An error is raised before any run
    starts, if one is impossible, or another command works in the same folder.
    """
    for run in runs:
        run_state.require_same_settings(run.config)
    missing = [run for run in runs if not run.is_done()]
    if not missing:
        return []
    _require_possible(missing)
    with ExitStack() as stack:
        for folder in {run.run_dir.parent for run in missing}:
            stack.enter_context(RunLock()).take(folder)
        missing = [run for run in missing if not run.is_done()]  # made before the lock was ours
        progress = stack.enter_context(RunsProgress(missing, quiet=quiet))
        return _make(missing, workers or _workers(runs), progress)


def _require_possible(runs: Sequence[PlannedRun]) -> None:
    """Complain before anything starts, and not once for each run."""
    if any(run.config.run.device == "cuda" for run in runs):
        require_gpus(1)
    for run in runs:
        run.config.check()
    sources = {data: data.load() for data in {run.config.data for run in runs}}
    networks = {(run.config.data, run.config.model, run.config.run.cuts): run for run in runs}
    for run in networks.values():
        source = sources[run.config.data]
        try:
            build_stages(run.config, source, torch.device("cpu"))
        except PartitionError as error:
            raise PartitionError(f"[{run.label}] {error}") from error


def _workers(runs: Sequence[PlannedRun]) -> int:
    if any(run.config.run.device == "cuda" for run in runs):
        return max(torch.cuda.device_count(), 1)
    return max(usable_cores() // max(map(_cores_of, runs)), 1)


def _cores_of(planned: PlannedRun) -> int:
    run = planned.config.run
    return run.threads * run.num_ranks


def _make(runs: Sequence[PlannedRun], workers: int, progress: RunsProgress) -> list[Failure]:
    """Make runs that have no result, in this order, ``workers`` at a time."""
    pending, failures = list(runs), list[Failure]()
    active: dict[int, tuple[PlannedRun, BaseProcess]] = {}  # by the number of the worker
    try:
        while pending or active:
            for worker in set(range(workers)) - active.keys():
                if pending:
                    active[worker] = pending[0], _start(pending.pop(0), worker)
            connection.wait([process.sentinel for _, process in active.values()], _POLL_S)
            for worker, (run, process) in list(active.items()):
                progress.show(run)
                if not process.is_alive():
                    del active[worker]
                    failure = _failure(run, process)
                    failures += [failure] if failure else []
                    state = run_state.state_of(run.run_dir)
                    progress.ended(run, f"failed: {failure.message}" if failure else state)
    finally:
        _stop([process for _, process in active.values()])
    return failures


def _failure(run: PlannedRun, process: BaseProcess) -> Failure | None:
    if run.is_done():
        return None
    code = process.exitcode or 0
    if code < 0:
        return Failure(run.label, f"ended by {signal.Signals(-code).name}")
    return Failure(run.label, run_state.message_of(run.run_dir))


def _stop(processes: Sequence[BaseProcess]) -> None:
    """End what still runs, after an interruption, and wait for it."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()


def _start(run: PlannedRun, worker: int) -> BaseProcess:
    """Begin a run or continue it, in a process that exits with this one."""
    resumable = run_state.state_of(run.run_dir) == "resumable"
    if not resumable:
        run_state.clear(run.run_dir)
        with run_folder.writing(run.run_dir):
            run.run_dir.mkdir(parents=True, exist_ok=True)
    gpu, gpus = None, torch.cuda.device_count()
    if run.config.run.device == "cuda" and run.config.run.runtime == "local" and gpus > 1:
        # By the name that CUDA has for it: the user may have hidden some already.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
        gpu = visible.split(",")[worker % gpus]
    arguments = (run.run_dir, None if resumable else run.config, gpu)
    process = fork_server().Process(target=_be_run, args=arguments)
    process.start()
    return process


def _be_run(run_dir: Path, config: TrainConfig | None, gpu: str | None) -> None:
    """Train, or resume where there is no configuration; messages go to a file of the run.

    SIGTERM ends the process at once, whatever it does: a run's folder is made for that.
    """
    os.setpgid(0, 0)  # Ctrl-C in a terminal is for the parent, which then tells the run
    end_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    with (run_dir / run_state.LOG).open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    keep_freed_memory()
    try:
        if config is None:
            resume(run_dir, quiet=True)
        else:
            train(config, quiet=True)
    except DelaygradError as error:
        sys.exit(f"delaygrad: {error}")
