"""Make many runs, a few at a time, each in a process of its own; stop and continue at any moment.

Finished runs stay. Runs with a checkpoint are resumed; interrupted ones without a checkpoint begin
anew. A run that diverged is a result. A run that fails does not stop the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from delaygrad.errors import PartitionError
from delaygrad.launch import require_gpus, usable_cores
from delaygrad.reproduce import run_state
from delaygrad.reproduce.grid import PlannedRun
from delaygrad.reproduce.progress import RunsProgress
from delaygrad.reproduce.target import Failure
from delaygrad.training.assembly import build_stages
from delaygrad.training.run_lock import RunLock

_POLL_S = 0.1
_GRACE_S = 10.0  # for a run that was told to stop


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
        return Runner(missing, workers=workers or _workers(runs), progress=progress).run()


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


@dataclass(frozen=True, kw_only=True)
class _Active:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    worker: int


class Runner:
    """Make runs that have no result, in this order, ``workers`` at a time."""

    def __init__(self, runs: Sequence[PlannedRun], *, workers: int, progress: RunsProgress) -> None:
        self._pending = list(runs)
        self._workers = workers
        self._progress = progress
        self._active: list[_Active] = []
        self._failures: list[Failure] = []

    def run(self) -> list[Failure]:
        """Make all runs; return those that failed."""
        try:
            while self._pending or self._active:
                while self._pending and len(self._active) < self._workers:
                    self._begin(self._pending.pop(0))
                time.sleep(_POLL_S)
                for active in list(self._active):
                    if active.process.poll() is None:
                        self._progress.at(active.run, run_state.position(active.run.run_dir))
                    else:
                        self._end(active)
        finally:
            self._stop()
        return self._failures

    def _begin(self, run: PlannedRun) -> None:
        if run_state.state_of(run.run_dir) == "resumable":
            before = run_state.position(run.run_dir)
            action = ["resume", str(run.run_dir)]
        else:
            before = {}
            run_state.clear(run.run_dir)
            action = ["train", str(run_state.write_planned(run.config))]
        worker = min(set(range(self._workers)) - {active.worker for active in self._active})
        process = _launch(run, action, worker)
        self._active.append(_Active(run=run, process=process, worker=worker))
        self._progress.started(run, before)

    def _end(self, active: _Active) -> None:
        self._active.remove(active)
        state = run_state.state_of(active.run.run_dir)
        if state in ("finished", "diverged"):
            self._progress.ended(active.run, state)
            return
        message = run_state.message_of(active.run.run_dir)
        if active.process.returncode < 0:
            message = f"ended by {signal.Signals(-active.process.returncode).name}"
        self._failures.append(Failure(active.run.label, message))
        self._progress.ended(active.run, f"failed: {message}")

    def _stop(self) -> None:
        """End what still runs, after an interruption, and wait for it."""
        for active in self._active:
            active.process.terminate()
        deadline = time.monotonic() + _GRACE_S
        try:
            for active in self._active:
                active.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for active in self._active:
                active.process.kill()
                active.process.wait()


def _launch(run: PlannedRun, action: list[str], worker: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.config.run.threads)}
    gpus = torch.cuda.device_count()
    if run.config.run.device == "cuda" and run.config.run.runtime == "local" and gpus > 1:
        environment["CUDA_VISIBLE_DEVICES"] = _gpu(worker % gpus)
    with (run.run_dir / run_state.LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "delaygrad.reproduce.child", str(os.getpid()), *action],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            process_group=0,  # Ctrl-C in a terminal is for this process, which then tells the run
        )


def _gpu(index: int) -> str:
    """Name a GPU as CUDA does: the user may have hidden some already."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)
