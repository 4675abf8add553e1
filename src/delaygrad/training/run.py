"""Run a configuration: here, in worker processes on this machine, or as a rank under torchrun."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from delaygrad.data import DataSource
from delaygrad.errors import CheckpointError, ConfigError, DataError
from delaygrad.runtime import Launch, launched_by_torchrun, run_workers
from delaygrad.runtime.launch import joined, require_single_process
from delaygrad.runtime.team import Ranks, Solo, Team
from delaygrad.training import checkpoint, run_folder
from delaygrad.training.assembly import build_pipeline, first_batch_sha256, load_data, resolve
from delaygrad.training.config import TrainConfig, config_from_json, load_config
from delaygrad.training.loop import TrainingLoop
from delaygrad.training.reporter import announce


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
        assert config.run_dir is not None
        return _continue(config.run_dir, quiet, data_dir=config.data_dir)
    return _dispatch(config, None, quiet)


def _restarted(config: TrainConfig) -> bool:
    """Say whether torchrun has started this very run once more, after a failure."""
    times = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if times == 0 or config.run_dir is None or not run_folder.holds_run(config.run_dir):
        return False
    begun = load_config(config.run_dir / run_folder.CONFIG)
    asked = dataclasses.replace(
        config,
        lr=config.base_lr,
        cuts=config.cuts or begun.cuts,
        run_dir=begun.run_dir,
        data_dir=begun.data_dir,
    )
    return asked == begun


def resume(run_dir: Path, *, quiet: bool = False) -> dict[str, Any] | None:
    """Continue an interrupted run from its newest checkpoint; ends as the whole run would have.

    Raises:
        ConfigError: there is no run in the folder, or it is finished.
        CheckpointError: it has no checkpoint, or a corrupt one.
        DataError: the hosts do not have the same data.
    """
    return _continue(run_dir, quiet)


def _continue(run_dir: Path, quiet: bool, *, data_dir: Path | None = None) -> dict[str, Any] | None:
    if not (run_dir / run_folder.CONFIG).exists():
        raise ConfigError(f"there is no run in this folder ({run_dir}); it has no config.json")
    config = load_config(run_dir / run_folder.CONFIG)
    if (run_dir / run_folder.SUMMARY).exists():
        raise ConfigError(f"the run is finished ({run_dir}); its summary.json is there")
    found = checkpoint.find(run_dir / run_folder.CHECKPOINTS)
    if not found:
        raise CheckpointError(
            f"the run has no checkpoint ({run_dir}); start again with delaygrad train --config "
            f"{run_dir / run_folder.CONFIG} --run-dir FOLDER"
        )
    # The folder may have moved, and each host may have its own data.
    config = dataclasses.replace(config, run_dir=run_dir, data_dir=data_dir or config.data_dir)
    return _dispatch(config, found[-1], quiet)


def _dispatch(config: TrainConfig, iteration: int | None, quiet: bool) -> dict[str, Any] | None:
    config.check()
    device = _device(config)
    launch = Launch(num_workers=config.stages, threads=config.threads, timeout_s=config.timeout_s)
    if config.runtime == "distributed" and launched_by_torchrun():
        resuming = iteration is not None
        return _rank_main(config.to_json(), resuming, quiet, launch, prepared=False)
    if config.runtime == "local":
        require_single_process()
    source = load_data(config)
    config = _prepare(config, source, iteration)
    if config.runtime == "distributed":
        announce(f"starting {config.stages} processes, one for each stage", quiet=quiet)
        arguments = (config.to_json(), iteration is not None, quiet, launch)
        summary: dict[str, Any] = run_workers(_rank_main, launch, *arguments)[0]
        return summary
    torch.set_num_threads(config.threads)
    return _run(config, source, Solo(), device, iteration, quiet, rank=None)


def _device(config: TrainConfig) -> torch.device:
    """Raise ConfigError unless this host can compute on the device."""
    device = torch.device(config.device)
    if device.type == "cuda":
        needed = config.stages if config.runtime == "distributed" else 1
        if launched_by_torchrun():
            needed = int(os.environ.get("LOCAL_RANK", "0")) + 1
        here = torch.cuda.device_count()
        if here < needed:
            raise ConfigError(
                f"too few GPUs (found: {here}, needed: {needed}); use cpu or the local runtime"
            )
    return device


def _rank_main(
    values: dict[str, Any], resuming: bool, quiet: bool, launch: Launch, *, prepared: bool = True
) -> dict[str, Any] | None:
    """What every rank does; ``prepared``: the process that started it has called ``_prepare``."""
    config = config_from_json(values)
    device = torch.device(config.device)
    if device.type != "cpu":
        if "LOCAL_RANK" not in os.environ:
            raise ConfigError("LOCAL_RANK is not set: nothing says which GPU is this process's")
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(device.index)
    with joined(launch, device) as rank:
        team = Ranks(timeout_s=config.timeout_s)
        source = load_data(config)
        if not prepared:
            require_alike(config, source, resuming, team)
        iteration = _common_checkpoint(config, team) if resuming else None
        if not prepared:
            config = _prepare_together(config, source, iteration, team)
        return _run(config, source, team, device, iteration, quiet, rank=rank)


def require_alike(config: TrainConfig, source: DataSource, resuming: bool, team: Team) -> None:
    """Raise, on every rank, unless all have the same data, and begin or continue together.

    Raises:
        DataError: the data differ.
        ConfigError: some have a run to continue, some have not.
    """
    digest = first_batch_sha256(config, source)
    told = f"{source.train.num_samples} samples, {source.num_classes} classes, first batch {digest}"
    found = team.gather((told, resuming))
    texts, continuing = team.broadcast(
        ([text for text, _ in found], [rank for rank, (_, flag) in enumerate(found) if flag])
    )
    if len(set(texts)) > 1:
        every = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts))
        raise DataError(f"the hosts have different training data ({every}); give them the same")
    if len(continuing) not in (0, team.size):
        raise ConfigError(
            f"only some ranks find their run to continue (ranks: {continuing}); start torchrun "
            "again on all hosts, with delaygrad resume"
        )


def _prepare(config: TrainConfig, source: DataSource, iteration: int | None) -> TrainConfig:
    """Resolve a new run and make its folder, or bring the folder of an old one in line."""
    if iteration is None:
        if config.run_dir is not None:
            run_folder.require_no_run(config.run_dir)
        config = resolve(config, source)
        run_folder.create(config)
    else:
        assert config.run_dir is not None
        run_folder.rewind_records(config.run_dir, iteration)
        checkpoint.rewind(config.run_dir / run_folder.CHECKPOINTS, iteration)
    return config


def _prepare_together(
    config: TrainConfig, source: DataSource, iteration: int | None, team: Team
) -> TrainConfig:
    """Do the same on all ranks: rank 0 decides, and every host has a folder, shared or its own."""
    own = config
    if own.run_dir is not None and iteration is None:
        run_folder.require_no_run(own.run_dir)
    team.barrier()  # all have looked, before the first folder is made
    decided = _prepare(config, source, iteration).to_json() if team.rank == 0 else None
    config = config_from_json(team.broadcast(decided))
    config = dataclasses.replace(
        config, run_dir=own.run_dir or config.run_dir, data_dir=own.data_dir
    )
    assert config.run_dir is not None
    if not run_folder.holds_run(config.run_dir):
        run_folder.create(config)
    if iteration is not None:
        checkpoint.rewind(config.run_dir / run_folder.CHECKPOINTS, iteration)
    team.barrier()  # all is in line, before anything new is written
    return config


def _common_checkpoint(config: TrainConfig, team: Team) -> int:
    """Find the newest checkpoint that every rank's disk has."""
    assert config.run_dir is not None
    everywhere = team.gather(checkpoint.find(config.run_dir / run_folder.CHECKPOINTS))
    newest: int | None = None
    if everywhere:
        newest = max(set.intersection(*map(set, everywhere)), default=None)
    newest = team.broadcast(newest)
    if newest is None:
        raise CheckpointError("the hosts have no checkpoint in common; start the run again")
    return newest


def _run(
    config: TrainConfig,
    source: DataSource,
    team: Team,
    device: torch.device,
    iteration: int | None,
    quiet: bool,
    *,
    rank: int | None,
) -> dict[str, Any] | None:
    pipeline = build_pipeline(config, source, device, rank)
    if iteration is not None:
        assert config.run_dir is not None
        folder = config.run_dir / run_folder.CHECKPOINTS
        indices = range(config.stages) if rank is None else [rank]
        states = {k: checkpoint.read_stage(folder, iteration, k) for k in indices}
        stages = {str(k): state.pop("stage") for k, state in states.items()}
        pipeline.load_state_dict({**states[indices[0]], "stages": stages})
    return TrainingLoop(config, source, pipeline, team, device, quiet=quiet).run()
