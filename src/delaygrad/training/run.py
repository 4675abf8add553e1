"""Run a configuration: here, in worker processes on this machine, or as a rank under torchrun."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

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
from delaygrad.training.run_lock import RunLock


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
    return _dispatch(config, None, quiet)


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
    run_dir: Path, request: Resume, quiet: bool, *, data_dir: Path | None = None
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
    return _dispatch(config, request, quiet)


def _dispatch(config: TrainConfig, request: Resume | None, quiet: bool) -> dict[str, Any] | None:
    config.check()
    device = _device(config)
    launch = Launch(
        num_workers=config.run.stages, threads=config.run.threads, timeout_s=config.run.timeout_s
    )
    if config.run.runtime == "distributed" and launched_by_torchrun():
        return _rank_main(config.to_json(), request, quiet, launch, prepared=False)
    if config.run.runtime == "local":
        require_single_process()
    source = config.data.load()
    with RunLock() as lock:
        config, start = _prepare(config, source, request, lock)
        if config.run.runtime == "distributed":
            announce(f"starting {config.run.stages} processes, one for each stage", quiet=quiet)
            arguments = (config.to_json(), start, quiet, launch)
            summary: dict[str, Any] = run_workers(_rank_main, launch, *arguments)[0]
            return summary
        torch.set_num_threads(config.run.threads)
        return _run(config, source, Solo(), device, start, quiet, rank=None)


def _device(config: TrainConfig) -> torch.device:
    """Raise ConfigError unless this host can compute on the device."""
    if config.run.device == "cuda":
        needed = config.run.stages if config.run.runtime == "distributed" else 1
        if launched_by_torchrun():
            needed = int(os.environ.get("LOCAL_RANK", "0")) + 1
        require_gpus(needed)
    return torch.device(config.run.device)


def _rank_main(
    values: dict[str, Any],
    start: int | Resume | None,
    quiet: bool,
    launch: Launch,
    *,
    prepared: bool = True,
) -> dict[str, Any] | None:
    """What every rank does; ``prepared``: the process that started it has called ``_prepare``.

    Args:
        start: the iteration of the checkpoint; or how to continue, if the checkpoint is not chosen
            yet. None: start at the beginning.
    """
    config = TrainConfig.from_json(values)
    device = torch.device(config.run.device)
    if device.type != "cpu":
        if "LOCAL_RANK" not in os.environ:
            raise ConfigError("LOCAL_RANK is not set: nothing says which GPU is this process's")
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(device.index)
    with joined(launch, device) as rank, RunLock() as lock:
        control = Ranks(timeout_s=config.run.timeout_s)
        source = config.data.load()
        if not prepared:
            assert not isinstance(start, int)
            require_alike(source, start is not None, control)
            config, start = _prepare_together(config, source, start, control, lock)
        assert not isinstance(start, Resume)
        return _run(config, source, control, device, start, quiet, rank=rank)


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
    config: TrainConfig, source: DataSource, request: Resume | None, lock: RunLock
) -> tuple[TrainConfig, int | None]:
    """Make the folder of a new run, or rewind the folder of an old one, before any rank starts.

    Returns:
        The resolved configuration, and the iteration to continue from.
    """
    if request is None:
        return _begin(config, source, lock), None
    lock.take(config.run_dir)
    start = find_start(config.run_dir, range(config.run.stages), Solo(), strict=request.strict)
    _rewind(config, source, request, start)
    return config, start.iteration


def _begin(config: TrainConfig, source: DataSource, lock: RunLock) -> TrainConfig:
    """Resolve a new run and make its folder."""
    if config.records.run_dir is not None:
        run_folder.require_no_run(config.records.run_dir)
    config = resolve(config, source)
    lock.take(config.run_dir)
    run_folder.require_no_run(config.run_dir)  # another process may have made one meanwhile
    run_folder.create(config)
    return config


def _rewind(config: TrainConfig, source: DataSource, request: Resume, start: Start) -> None:
    """Rewind a run folder to the checkpoint, and note what is unusual."""
    changed = changes(config, source, start)
    require_allowed(changed, request.allow_changes)
    mark = start.about.get("records")
    notes = list(start.notes)
    damage = run_folder.rewind_records(config.run_dir, start.iteration, mark)
    if damage:
        notes.append(damage)
    checkpoint.rewind(config.run_dir / run_folder.CHECKPOINTS, start.iteration)
    run_folder.append_event(
        config.run_dir, "resumed", iteration=start.iteration, changes=changed, notes=notes
    )
    for note in notes:
        warn(note)


def _prepare_together(
    config: TrainConfig, source: DataSource, request: Resume | None, control: Control, lock: RunLock
) -> tuple[TrainConfig, int | None]:
    """Do the same on all ranks: rank 0 decides, and every host has a folder, shared or its own."""
    own = config
    if own.records.run_dir is not None and request is None:
        run_folder.require_no_run(own.records.run_dir)
    control.barrier()  # all have looked, before the first folder is made
    lock.token = control.broadcast(lock.token)
    if control.rank == 0 and request is None:
        config = _begin(config, source, lock)
    config = TrainConfig.from_json(control.broadcast(config.to_json()))
    config = config.replace(run_dir=own.records.run_dir or config.run_dir, data_dir=own.data_dir)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one rank of each host
        lock.take(config.run_dir)
    if not run_folder.holds_run(config.run_dir):
        run_folder.create(config)
    start = None
    if request is not None:
        start = find_start(config.run_dir, [control.rank], control, strict=request.strict)
        if control.rank == 0:
            _rewind(config, source, request, start)
        checkpoint.rewind(config.run_dir / run_folder.CHECKPOINTS, start.iteration)
    control.barrier()  # all is in line, before anything new is written
    return config, None if start is None else start.iteration


def _run(
    config: TrainConfig,
    source: DataSource,
    control: Control,
    device: torch.device,
    iteration: int | None,
    quiet: bool,
    *,
    rank: int | None,
) -> dict[str, Any] | None:
    pipeline = build_pipeline(config, source, device, rank)
    if iteration is not None:
        folder = config.run_dir / run_folder.CHECKPOINTS
        indices = range(config.run.stages) if rank is None else [rank]
        states = {k: checkpoint.read_stage(folder, iteration, k) for k in indices}
        stages = {str(k): state.pop("stage", None) for k, state in states.items()}
        if any(state != states[indices[0]] for state in states.values()):
            raise CheckpointError(f"the stages of the checkpoint are not of one run ({folder})")
        pipeline.load_state_dict({**states[indices[0]], "stages": stages})
        for optimizer in filter(None, pipeline.optimizers):  # the configuration decides
            for part in parts_of(optimizer):
                for group in part.param_groups:
                    group.update(part.defaults)
    narrow = torch.autocast(device.type, torch.bfloat16, enabled=config.run.amp is not None)
    with narrow:
        return TrainingLoop(config, source, pipeline, control, device, quiet=quiet).run()
