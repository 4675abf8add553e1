"""Run a configuration: here, in worker processes on this machine, or as a rank under torchrun."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from delaygrad import checkpoint
from delaygrad.data import DataSource
from delaygrad.errors import CheckpointError, ConfigError, DataError
from delaygrad.launch import (
    Launch,
    joined,
    launched_by_torchrun,
    require_gpus,
    require_single_process,
    run_workers,
)
from delaygrad.optimizers import parts_of
from delaygrad.runtime.control import Control, Ranks, Solo
from delaygrad.training import run_folder
from delaygrad.training.assembly import build_pipeline, resolve
from delaygrad.training.config import TrainConfig, load_config, require_settings
from delaygrad.training.loop import TrainingLoop
from delaygrad.training.reporter import announce, warn
from delaygrad.training.resuming import Resume, Start, changes, find_start, require_allowed
from delaygrad.training.run_folder import RunLock


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the processes of a run are told.

    Attributes:
        config: the run.
        resume: how to continue; None: begin a new run.
        start: the iteration to go on from, 0 for a new run; None: ``_prepare`` has to choose it.
        quiet: show no progress.
    """

    config: TrainConfig
    resume: Resume | None = None
    start: int | None = None
    quiet: bool = False


def train(config: TrainConfig, *, quiet: bool = False) -> dict[str, Any] | None:
    """Train from the beginning.

    Args:
        config: the run.
        quiet: show no progress.

    Returns:
        What ``summary.json`` holds; None in a process that does not report (torchrun).

    Raises:
        DelaygradError: something in the configuration, the data or the run is wrong.
    """
    if _restarted(config):
        return _continue(config.run_dir, Resume(), quiet, data_dir=config.data_dir)
    return _do(Job(config=config, quiet=quiet))


def _restarted(config: TrainConfig) -> bool:
    """Whether torchrun has restarted this run after a failure."""
    run_dir = config.records.run_dir
    times = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if times == 0 or run_dir is None or not run_folder.holds_run(run_dir):
        return False
    begun = load_config(run_dir / run_folder.CONFIG)
    asked = config.replace(
        cuts=config.run.cuts or begun.run.cuts, run_dir=begun.run_dir, data_dir=begun.data_dir
    )
    return asked == begun


def resume(
    run_dir: Path, *, allow_changes: Sequence[str] = (), strict: bool = False, quiet: bool = False
) -> dict[str, Any] | None:
    """Continue an interrupted run from its newest checkpoint; ends as the whole run would have.

    A damaged newest checkpoint is set aside, with a message, and the one before it is taken.

    Args:
        run_dir: the run's folder.
        allow_changes: names of settings that may differ from those of the checkpoint; ``data``
            for the contents of the data. The records state what has changed.
        strict: refuse a run whose newest checkpoint is damaged or missing.
        quiet: show no progress.

    Raises:
        ConfigError: there is no run in the folder, it is finished, or another process works on it.
        CheckpointError: it has no sound checkpoint, or its settings or data have changed.
        DataError: the hosts do not have the same data.
    """
    require_settings(allow_changes)
    return _continue(run_dir, Resume(allow_changes=tuple(allow_changes), strict=strict), quiet)


def _continue(
    run_dir: Path, how: Resume, quiet: bool, *, data_dir: Path | None = None
) -> dict[str, Any] | None:
    if not run_folder.holds_run(run_dir):
        raise ConfigError(f"there is no run in this folder ({run_dir}); it has no config.json")
    config = load_config(run_dir / run_folder.CONFIG)
    if (run_dir / run_folder.SUMMARY).exists():
        raise ConfigError(f"the run is finished ({run_dir}); its summary.json is there")
    if not checkpoint.find(run_dir / run_folder.CHECKPOINTS):
        raise CheckpointError(
            f"the run has no checkpoint ({run_dir}); start again with delaygrad train --config "
            f"{run_dir / run_folder.CONFIG} --run-dir FOLDER"
        )
    # The folder may have moved, and each host may have its own data.
    config = config.replace(run_dir=run_dir, data_dir=data_dir or config.data_dir)
    return _do(Job(config=config, resume=how, quiet=quiet))


def _do(job: Job) -> dict[str, Any] | None:
    """Do a job in this process, in workers, or as one of torchrun's ranks."""
    run = job.config.run
    job.config.check()
    _require_device(job.config)
    launch = Launch(num_workers=run.num_ranks, threads=run.threads, timeout_s=run.timeout_s)
    if run.runtime == "distributed" and launched_by_torchrun():
        return _rank_main(job, launch)
    if run.runtime == "local":
        require_single_process()
    source = job.config.data.load()
    with RunLock() as lock:
        job, stages = _prepare(job, source, Solo(), lock)
        if run.runtime == "distributed":
            del stages  # each worker builds its own
            shared = "one for each stage" if run.ranks is None else f"for {run.stages} stages"
            announce(f"starting {run.num_ranks} processes, {shared}", quiet=job.quiet)
            summary: dict[str, Any] = run_workers(_rank_main, launch, job, launch)[0]
            return summary
        torch.set_num_threads(run.threads)
        return _run(job, source, stages, Solo(), torch.device(run.device), rank=None)


def _require_device(config: TrainConfig) -> None:
    """Raise ConfigError unless this host can compute on the device."""
    if config.run.device == "cuda":
        needed = config.run.num_ranks
        if launched_by_torchrun():
            needed = int(os.environ.get("LOCAL_RANK", "0")) + 1
        require_gpus(needed)


def _rank_main(job: Job, launch: Launch) -> dict[str, Any] | None:
    """What every rank does."""
    device = torch.device(job.config.run.device)
    if device.type != "cpu":
        if "LOCAL_RANK" not in os.environ:
            raise ConfigError("LOCAL_RANK is not set: nothing says which GPU is this process's")
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(device.index)
    with joined(launch, device) as rank, RunLock() as lock:
        control = Ranks(timeout_s=job.config.run.timeout_s)
        source, stages = job.config.data.load(), None
        if job.start is None:
            require_alike(source, job.resume is not None, control)
            job, stages = _prepare(job, source, control, lock)
        return _run(job, source, stages, control, device, rank=rank)


def require_alike(source: DataSource, resuming: bool, control: Control) -> None:
    """Raise, on every rank, unless all have the same data, and begin or continue together.

    Raises:
        DataError: the data differ.
        ConfigError: some have a run to continue, some have not.
    """
    told = f"{source.train.num_samples} samples, {source.num_classes} classes, {source.sha256}"
    found = control.gather((told, resuming))
    texts, continuing = control.broadcast(
        ([text for text, _ in found], [rank for rank, (_, flag) in enumerate(found) if flag])
    )
    if len(set(texts)) > 1:
        every = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts))
        raise DataError(f"the hosts have different training data ({every}); give them the same")
    if len(continuing) not in (0, control.size):
        raise ConfigError(
            f"only some ranks find their run to continue (ranks: {continuing}); start torchrun "
            "again on all hosts, with delaygrad resume"
        )


def _prepare(
    job: Job, source: DataSource, control: Control, lock: RunLock
) -> tuple[Job, list[nn.Module] | None]:
    """Make the folder of a new run, or rewind that of an old one; all ranks call it.

    Rank 0 decides. Every host has a folder, shared or its own.

    Returns:
        The job with its resolved configuration and its start, and the stages if they are built.
    """
    own, config, start, stages = job.config, job.config, 0, None
    if job.resume is None and own.records.run_dir is not None:
        run_folder.require_no_run(own.records.run_dir)
    control.barrier()  # all have looked, before the first folder is made
    lock.token = control.broadcast(lock.token)
    if control.rank == 0 and job.resume is None:
        config, stages = _begin(config, source, lock)
    config = TrainConfig.from_json(control.broadcast(config.to_json()))
    config = config.replace(run_dir=own.records.run_dir or config.run_dir, data_dir=own.data_dir)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one rank of each host
        lock.take(config.run_dir)
    if not run_folder.holds_run(config.run_dir):
        run_folder.create(config)
    if job.resume is not None:
        ours = config.run.stages_of(control.rank) if control.size > 1 else range(config.run.stages)
        found = find_start(config.run_dir, ours, control, strict=job.resume.strict)
        if control.rank == 0:
            _rewind(config, source, job.resume, found)
        start = found.iteration
        checkpoint.rewind(config.run_dir / run_folder.CHECKPOINTS, start)
    control.barrier()  # all is in line, before anything new is written
    return replace(job, config=config, start=start), stages


def _begin(
    config: TrainConfig, source: DataSource, lock: RunLock
) -> tuple[TrainConfig, list[nn.Module]]:
    """Resolve a new run and make its folder."""
    if config.records.run_dir is not None:
        run_folder.require_no_run(config.records.run_dir)
    config, stages = resolve(config, source)
    lock.take(config.run_dir)
    run_folder.require_no_run(config.run_dir)  # another process may have made one meanwhile
    run_folder.create(config)
    return config, stages


def _rewind(config: TrainConfig, source: DataSource, how: Resume, start: Start) -> None:
    """Rewind the records to the checkpoint, and note what is unusual."""
    changed = changes(config, source, start)
    require_allowed(changed, how.allow_changes)
    checksum = start.about.get("records")
    notes = list(start.notes)
    damage = run_folder.rewind_records(config.run_dir, start.iteration, checksum)
    if damage:
        notes.append(damage)
    run_folder.append_event(
        config.run_dir, "resumed", iteration=start.iteration, changes=changed, notes=notes
    )
    for note in notes:
        warn(note)


def _run(
    job: Job,
    source: DataSource,
    stages: list[nn.Module] | None,
    control: Control,
    device: torch.device,
    *,
    rank: int | None,
) -> dict[str, Any] | None:
    config = job.config
    pipeline = build_pipeline(config, source, stages, device, rank)
    if job.start:
        folder = config.run_dir / run_folder.CHECKPOINTS
        indices = config.run.stages_of(rank or 0)
        states = {k: checkpoint.read_stage(folder, job.start, k) for k in indices}
        saved = {str(k): state.pop("stage", None) for k, state in states.items()}
        if any(state != states[indices[0]] for state in states.values()):
            raise CheckpointError(f"the stages of the checkpoint are not of one run ({folder})")
        pipeline.load_state_dict({**states[indices[0]], "stages": saved})
        for optimizer in filter(None, pipeline.optimizers):  # the configuration decides
            for part in parts_of(optimizer):
                for group in part.param_groups:
                    group.update(part.defaults)
    narrow = torch.autocast(device.type, torch.bfloat16, enabled=config.run.amp is not None)
    with narrow:
        return TrainingLoop(config, source, pipeline, control, device, quiet=job.quiet).run()
