"""From a configuration to the things it names: data, network, stages, optimizers, pipeline."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad import models
from delaygrad.data import DataSource, batch_indices, load
from delaygrad.errors import ConfigError
from delaygrad.methods import METHODS, Method, options_of
from delaygrad.partition import cuts_of, split
from delaygrad.runtime import DistributedPipeline, LocalPipeline, Pipeline
from delaygrad.training.config import METHOD_OPTIONS, TrainConfig
from delaygrad.training.evaluation import cross_entropy
from delaygrad.training.run_folder import new_run_dir


def load_data(config: TrainConfig) -> DataSource:
    """Load the data that the configuration names."""
    return load(
        config.data,
        data_dir=config.data_dir,
        holdout=config.holdout,
        augment=config.augment,
        context_length=config.context_length,
    )


def build_model(config: TrainConfig, source: DataSource) -> nn.Sequential:
    """Build the whole network with the initial weights of the configuration's seed.

    Raises:
        ConfigError: there is no such model, or an option does not belong to it.
    """

    def build() -> nn.Sequential:
        return models.build(
            config.model,
            source.sample_shape,
            source.num_classes,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            dropout=config.dropout,
        )

    try:
        with torch.device("meta"):
            _require_memory(build())
        torch.manual_seed(config.seed)
        model = build()
    except (ValueError, RuntimeError, OverflowError) as error:  # torch: it is too large
        raise ConfigError(str(error)) from error
    if config.channels_last:
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def _require_memory(skeleton: nn.Module) -> None:
    """Raise unless the parameters of a network fit in this machine's memory."""
    needed = sum(parameter.nbytes for parameter in skeleton.parameters())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ConfigError(
            f"the network is larger than this machine's memory (parameters: {needed / 2**30:,.1f} "
            f"GiB, memory: {memory / 2**30:,.1f} GiB); lower --width or --depth"
        )


def first_batch(
    config: TrainConfig, source: DataSource, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Read the inputs (on the device) and targets that a run begins with, not augmented."""
    indices = batch_indices(
        seed=config.seed,
        iteration=0,
        num_samples=source.train.num_samples,
        batch_size=config.batch_size,
    )
    return place(source.train.inputs(indices), config, device), source.train.targets(indices)


def resolve(config: TrainConfig, source: DataSource) -> TrainConfig:
    """Fill in what is left open: cuts (by measuring the layers), learning rate, run folder."""
    build_method(config, source)  # complain before anything is measured
    check_batches(config, source)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        model = build_model(config, source)
        if config.cuts:
            stages = split(model, config.stages, cuts=config.cuts)
        else:
            device = torch.device(config.device)
            sample_inputs, _ = first_batch(config, source, device)
            stages = split(
                model.to(device),
                config.stages,
                sample_inputs=sample_inputs,
                recompute=config.recompute,
                make_optimizer=make_optimizer(config),
            )
    finally:
        torch.set_num_threads(threads)
    return dataclasses.replace(
        config,
        lr=config.base_lr,
        cuts=tuple(cuts_of(stages)),
        data_dir=config.data_dir and config.data_dir.resolve(),
        run_dir=config.run_dir or new_run_dir(config),
    )


def build_method(config: TrainConfig, source: DataSource | None = None) -> Method:
    """Make the method with those of the settings that it has.

    Args:
        source: says how many classes there are; None will do where no label is conditioned on.

    Raises:
        ConfigError: two settings of it contradict each other.
    """
    options: dict[str, Any] = {
        name: getattr(config, name) for name in options_of(config.method) if name in METHOD_OPTIONS
    }
    for name in ("stash_dtype", "boundary_dtype"):
        if options.get(name) is not None:
            options[name] = getattr(torch, options[name])
    if config.label_conditioned and source is not None:
        options["num_classes"] = source.num_classes
    try:
        return METHODS[config.method](**options)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_batches(config: TrainConfig, source: DataSource) -> None:
    """Raise unless every batch can be split into its micro-batches.

    Raises:
        ConfigError: the last batch of an epoch is too short.
    """
    rest = source.train.num_samples % config.batch_size
    if 0 < rest < config.micro_batches:
        raise ConfigError(
            f"the last batch of an epoch is too short for its micro-batches (samples: {rest}, "
            f"micro_batches: {config.micro_batches}); choose another --batch-size"
        )


def build_pipeline(
    config: TrainConfig, source: DataSource, device: torch.device, rank: int | None
) -> Pipeline:
    """Build the network, cut it, and make the pipeline (``rank`` None) or one rank's part of it."""
    stages = split(build_model(config, source), config.stages, cuts=config.cuts)
    stages = [stage.to(device) if rank in (None, k) else stage for k, stage in enumerate(stages)]
    method = build_method(config, source)
    # The loop looks at the losses itself, and leaves a divergence on record.
    if rank is None:
        return LocalPipeline(
            stages,
            cross_entropy,
            make_optimizer(config),
            method=method,
            allow_nonfinite_loss=True,
        )
    return DistributedPipeline(
        stages[rank],
        cross_entropy,
        make_optimizer(config),
        method=method,
        allow_nonfinite_loss=True,
        device=device,
        timeout_s=config.timeout_s,
    )


def make_optimizer(config: TrainConfig) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Return what a pipeline calls for each stage."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if config.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=config.base_lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
            )
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=config.base_lr, weight_decay=config.weight_decay)

    return make


def place(inputs: Tensor, config: TrainConfig, device: torch.device) -> Tensor:
    """Bring a batch where, and into the memory layout in which, the first stage wants it."""
    if config.channels_last and inputs.dim() == 4:
        return inputs.to(device, memory_format=torch.channels_last)
    return inputs.to(device)
