"""Run a configuration: here, in worker processes on this machine, or as a rank under torchrun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from delaygrad.data import DataSource
from delaygrad.errors import CheckpointError, ConfigError
from delaygrad.runtime import Launch, launched_by_torchrun, run_workers
from delaygrad.runtime.launch import joined
from delaygrad.runtime.team import Ranks, Solo, Team
from delaygrad.training import checkpoint, run_folder
from delaygrad.training.assembly import build_pipeline, load_data, resolve
from delaygrad.training.config import TrainConfig, config_from_json, load_config
from delaygrad.training.loop import TrainingLoop


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
    return _dispatch(config, None, quiet)


def resume(run_dir: Path, *, quiet: bool = False) -> dict[str, Any] | None:
    """Continue an interrupted run from its newest checkpoint; ends as the whole run would have.

    Raises:
        ConfigError: there is no run in the folder, or it is finished.
        CheckpointError: it has no checkpoint, or a corrupt one.
    """
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
    values = {**config.to_json(), "run_dir": str(run_dir)}  # the folder may have moved
    return _dispatch(config_from_json(values), found[-1], quiet)


def _dispatch(config: TrainConfig, iteration: int | None, quiet: bool) -> dict[str, Any] | None:
    config.check()
    launch = Launch(num_workers=config.stages, threads=config.threads, timeout_s=config.timeout_s)
    if config.runtime == "distributed" and launched_by_torchrun():
        return _rank_main(config.to_json(), iteration, quiet, launch)
    source = load_data(config)
    config = _prepare(config, source, iteration)
    if config.runtime == "distributed":
        results = run_workers(_rank_main, launch, config.to_json(), iteration, quiet, launch)
        summary: dict[str, Any] = results[0]
        return summary
    torch.set_num_threads(config.threads)
    return _run(config, source, Solo(), torch.device(config.device), iteration, quiet, rank=None)


def _rank_main(
    values: dict[str, Any], iteration: int | None, quiet: bool, launch: Launch
) -> dict[str, Any] | None:
    """What every rank does; ``values`` may still be unresolved under torchrun."""
    config = config_from_json(values)
    device = torch.device(config.device)
    if device.type != "cpu":
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
    with joined(launch, device) as rank:
        team = Ranks(timeout_s=config.timeout_s)
        source = load_data(config)
        if not _is_prepared(config):
            prepared = _prepare(config, source, iteration).to_json() if rank == 0 else None
            config = config_from_json(team.broadcast(prepared))
        iteration = team.broadcast(iteration)
        return _run(config, source, team, device, iteration, quiet, rank=rank)


def _is_prepared(config: TrainConfig) -> bool:
    return config.run_dir is not None and (config.run_dir / run_folder.CONFIG).exists()


def _prepare(config: TrainConfig, source: DataSource, iteration: int | None) -> TrainConfig:
    """Resolve a new run and make its folder, or bring the records of an old one in line."""
    if iteration is None:
        config = resolve(config, source)
        run_folder.create(config)
    else:
        assert config.run_dir is not None
        run_folder.rewind_records(config.run_dir, iteration)
    return config


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
