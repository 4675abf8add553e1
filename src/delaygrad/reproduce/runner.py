"""Make many runs, a few at a time, each in a process of its own; stop and continue at any moment.

Finished runs stay. Runs with a checkpoint are resumed; interrupted ones without a checkpoint begin
anew. A run that diverged is a result. A run that fails does not stop the others. Two runners may
share an output folder: one of them holds each run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from delaygrad.errors import ConfigError, PartitionError
from delaygrad.reproduce import run_state
from delaygrad.reproduce.grid import PlannedRun
from delaygrad.reproduce.progress import RunsProgress
from delaygrad.reproduce.target import Failure
from delaygrad.training.assembly import build_stages

_POLL_S = 0.1
_LOOK_S = 1.0  # between two looks at the records, and at runs that others hold
_GRACE_S = 10.0  # for a run that was told to stop


def make_runs(runs: Sequence[PlannedRun], workers: int | None, *, quiet: bool) -> list[Failure]:
    """Make the runs that have no result yet; return those that failed.

    Args:
        runs: all of them.
        workers: at a time; None: as many as CPU cores, or GPUs.
        quiet: show no progress.

    Raises:
        ConfigError: one of them is impossible, or there are results with other settings.
        PartitionError: a network cannot be cut there.
    """
    for run in runs:
        run_state.require_same_settings(run.config)
    missing = [run for run in runs if not run.is_done()]
    if not missing:
        return []
    _require_possible(missing)
    with RunsProgress(runs, quiet=quiet) as progress:
        return Runner(runs, workers=workers or _workers(runs), progress=progress).run()


def _require_possible(runs: Sequence[PlannedRun]) -> None:
    """Complain before anything starts, and not once for each run."""
    if any(run.config.run.device == "cuda" for run in runs) and not torch.cuda.is_available():
        raise ConfigError("too few GPUs (found: 0, needed: 1); compute on the CPU")
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cores or 1) // max(map(_cores_of, runs)), 1)


def _cores_of(planned: PlannedRun) -> int:
    run = planned.config.run
    return run.threads * (run.stages if run.runtime == "distributed" else 1)


@dataclass(frozen=True, kw_only=True)
class _Active:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    worker: int


class Runner:
    """Make runs.

    Args:
        runs: in the order in which they begin.
        workers: at a time, at least 1.
        progress: shows what happens.
    """

    def __init__(self, runs: Sequence[PlannedRun], *, workers: int, progress: RunsProgress) -> None:
        self._pending = list(runs)
        self._workers = workers
        self._progress = progress
        self._active: list[_Active] = []
        self._held_elsewhere: list[PlannedRun] = []
        self._failures: list[Failure] = []
        self._looked_s = 0.0

    def run(self) -> list[Failure]:
        """Make all runs that have no result yet; return those that failed."""
        try:
            while self._pending or self._active or self._held_elsewhere:
                self._reap()
                while self._pending and len(self._active) < self._workers:
                    self._begin(self._pending.pop(0))
                self._look()
                time.sleep(_POLL_S)
        finally:
            self._stop()
        return self._failures

    def _begin(self, run: PlannedRun) -> None:
        """Start a run, unless it has a result or another process holds it."""
        with run_state.held(run.run_dir) as lock:
            if lock is None:
                self._held_elsewhere.append(run)
                return
            run_state.require_same_settings(run.config)
            state = run_state.state_of(run.run_dir)
            if state in ("finished", "diverged"):
                self._progress.ended(run, state, new=False)
                return
            before = run_state.position(run.run_dir) if state == "resumable" else {}
            if state == "resumable":
                action = ["resume", str(run.run_dir)]
            else:
                run_state.clear(run.run_dir)
                action = ["train", str(run_state.write_planned(run.config))]
            worker = min(set(range(self._workers)) - {active.worker for active in self._active})
            process = _launch(run, action, lock, worker)
            self._active.append(_Active(run=run, process=process, worker=worker))
            self._progress.started(run, before)

    def _reap(self) -> None:
        for active in [a for a in self._active if a.process.poll() is not None]:
            self._active.remove(active)
            run = active.run
            state = run_state.state_of(run.run_dir)
            if state in ("finished", "diverged"):
                self._progress.ended(run, state)
                continue
            message = run_state.message_of(run.run_dir)
            if active.process.returncode < 0:
                message = f"ended by {signal.Signals(-active.process.returncode).name}"
            self._failures.append(Failure(run.label, message))
            self._progress.ended(run, f"failed: {message}")

    def _look(self) -> None:
        """Show how far the runs are, and try those again that others held."""
        if time.monotonic() - self._looked_s < _LOOK_S:
            return
        self._looked_s = time.monotonic()
        for active in self._active:
            self._progress.at(active.run, run_state.position(active.run.run_dir))
        for run in self._held_elsewhere:
            self._progress.at(run, run_state.position(run.run_dir))
        if not self._pending:
            self._pending, self._held_elsewhere = self._held_elsewhere, []

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


def _launch(run: PlannedRun, action: list[str], lock: int, worker: int) -> subprocess.Popen[bytes]:
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
            pass_fds=(lock,),
            process_group=0,  # Ctrl-C in a terminal is for this process, which then tells the run
        )


def _gpu(index: int) -> str:
    """Name a GPU as CUDA does: the user may have hidden some already."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)
