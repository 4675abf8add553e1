"""From a configuration to the things it names: data, network, stages, optimizers, pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.data import DataSource, batch_indices
from delaygrad.errors import ConfigError
from delaygrad.launch import torch_threads
from delaygrad.methods import chosen
from delaygrad.models import to_channels_last
from delaygrad.partition import cuts_of, split
from delaygrad.partition.layers import keeps_forward
from delaygrad.planning import Plan, plan
from delaygrad.runtime import DistributedPipeline, LocalPipeline, Pipeline
from delaygrad.training.config import TrainConfig
from delaygrad.training.evaluation import cross_entropy
from delaygrad.training.optimizer_choices import mark_hidden_matrices
from delaygrad.training.reporter import announce
from delaygrad.training.run_folder import new_run_dir


def build_model(config: TrainConfig, source: DataSource) -> nn.Module:
    """Build the whole network with the initial weights of the configuration's seed."""
    config.model.require_memory(source)
    torch.manual_seed(config.run.seed)
    model = config.model.build(source)
    mark_hidden_matrices(model)
    return to_channels_last(model) if config.model.channels_last else model


def first_batch(
    config: TrainConfig, source: DataSource, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Read the inputs (on the device) and targets that a run begins with, not augmented."""
    indices = batch_indices(
        seed=config.run.seed,
        iteration=0,
        num_samples=source.train.num_samples,
        batch_size=config.run.batch_size,
    )
    return place(source.train.inputs(indices), config, device), source.train.targets(indices)


def plan_run(config: TrainConfig, source: DataSource, **options: Any) -> Plan:
    """Measure the network on the run's first batch, and predict; options as of ``plan``."""
    inputs, targets = first_batch(config, source, torch.device("cpu"))
    return plan(
        build_model(config, source),
        inputs,
        loss=lambda outputs: cross_entropy(outputs, targets),
        make_optimizer=config.optimizer.make,
        threads=config.run.threads,
        **options,
    )


def build_stages(config: TrainConfig, source: DataSource, device: torch.device) -> list[nn.Module]:
    """Build the network and cut it where the configuration says, or by measured time."""
    model, cuts = build_model(config, source).to(device), config.run.cuts or None
    known = cuts is not None and keeps_forward(model)
    return split(
        model,
        config.run.stages,
        cuts=cuts,
        sample_inputs=None if known else first_batch(config, source, device)[0],
        recompute=config.method.build(source).recompute,
        make_optimizer=config.optimizer.make,
    )


def resolve(config: TrainConfig, source: DataSource) -> tuple[TrainConfig, list[nn.Module]]:
    """Fill in what is left open: cuts (by measuring the layers), run folder; absolute paths.

    The stages are returned too, so that this process builds the network once.
    """
    config = with_method(config)
    config.method.build(source)  # complain before anything is measured
    check_batches(config, source)
    with torch_threads(config.run.threads):
        device = torch.device("cpu" if config.run.cuts else config.run.device)
        stages = build_stages(config, source, device)
    config = config.replace(
        cuts=list(cuts_of(stages)),
        data_dir=config.data_dir and config.data_dir.resolve(),
        run_dir=config.records.run_dir or new_run_dir(config),
    )
    return config, stages


def with_method(config: TrainConfig) -> TrainConfig:
    """Fill in what the method leaves open: by the stages, the batch size and the optimizer."""
    method, run = config.method.build(), config.run
    if method.complete is None:
        return config
    if method.name == "auto":
        looks_ahead = bool(config.optimizer.options().get("nesterov"))
        method = chosen(run.stages, run.batch_size, looks_ahead=looks_ahead)
        announce(f"method {method}: {method.title}", quiet=False)
    else:
        method = method.for_stages(run.stages, run.batch_size)
    parts = method.schedule.micro_batches
    config = config.replace(method=method.name, **{"micro_batches": parts} if parts > 1 else {})
    config.check()
    return config


def check_batches(config: TrainConfig, source: DataSource) -> None:
    """Raise ConfigError unless every batch can be split into its micro-batches."""
    micro_batches = config.method.build(source).schedule.micro_batches
    rest = source.train.num_samples % config.run.batch_size
    if 0 < rest < micro_batches:
        raise ConfigError(
            f"the last batch of an epoch is too short for its micro-batches (samples: {rest}, "
            f"micro_batches: {micro_batches}); choose another --batch-size"
        )


def build_pipeline(
    config: TrainConfig,
    source: DataSource,
    stages: list[nn.Module] | None,
    device: torch.device,
    rank: int | None,
) -> Pipeline:
    """Make the pipeline (``rank`` None) or one rank's part; ``stages`` are built if None."""
    stages = stages or build_stages(config, source, torch.device("cpu"))
    held = config.run.stages_of(rank or 0)
    stages = [stage.to(device) if k in held else stage for k, stage in enumerate(stages)]
    method = config.method.build(source)
    # The loop looks at the losses itself, and leaves a divergence on record.
    if rank is None:
        return LocalPipeline(
            stages,
            cross_entropy,
            config.optimizer.make,
            method=method,
            allow_nonfinite_loss=True,
            clip_norm=config.run.clip_norm,
        )
    return DistributedPipeline(
        stages[held.start : held.stop],
        cross_entropy,
        config.optimizer.make,
        method=method,
        allow_nonfinite_loss=True,
        clip_norm=config.run.clip_norm,
        device=device,
        timeout_s=config.run.timeout_s,
    )


def place(inputs: Tensor, config: TrainConfig, device: torch.device) -> Tensor:
    """Bring a batch where, and into the memory layout in which, the first stage wants it."""
    if config.model.channels_last and inputs.dim() == 4:
        return inputs.to(device, memory_format=torch.channels_last)
    return inputs.to(device)
