"""``delaygrad plan``: measure a network on this machine, and predict how it will train."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from delaygrad.errors import ConfigError
from delaygrad.planning import Forecast, Link, plan
from delaygrad.planning.figure import draw_plan
from delaygrad.planning.link import parse_bandwidth, parse_bytes
from delaygrad.training.assembly import (
    build_method,
    build_model,
    check_batches,
    first_batch,
    load_data,
    make_optimizer,
)
from delaygrad.training.config import TrainConfig
from delaygrad.training.evaluation import cross_entropy
from delaygrad.training.reporter import announce
from delaygrad.training.run_folder import environment


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Predict how a network will train as K stages.

    Example:
        >>> PlanConfig(stages=(2, 4), bandwidth="1Gbit", latency_ms=0.2).link()
        Link(bandwidth_bytes_per_s=125000000.0, latency_s=0.0002)
    """

    data: Literal["digits", "cifar10", "cifar100", "text"] = "digits"
    """Data set; the network is measured on one of its batches."""
    data_dir: Path | None = None
    """Folder with the files of cifar10, cifar100 or text."""
    model: str = "resnet8"
    """resnet8, resnet20, resnet56, resnet110 (any depth 6n+2), mlp, or gpt."""
    width: int | None = None
    """Units per layer (mlp, gpt)."""
    depth: int | None = None
    """Linear layers (mlp) or blocks (gpt)."""
    heads: int | None = None
    """Attention heads (gpt)."""
    context_length: int = 128
    """Characters per sample (text)."""
    dropout: float = 0.0
    """Probability of dropping a unit (mlp, gpt)."""
    channels_last: bool = True
    """Keep images as NHWC in memory."""
    batch_size: int = 64
    """Samples per batch."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimizer of every stage."""
    threads: int = 1
    """CPU threads of each process."""
    seed: int = 0
    """Seed of the initial weights and of the batch."""

    method: str = "ddg"
    """As for train, but not dni: the cost of synthesizers is not measured."""
    slack: int = 0
    """Additional iterations of delay per boundary, to hide a slow link (ddg)."""
    micro_batches: int = 1
    """Parts that each batch is split into."""
    recompute: bool = False
    """Keep only the inputs of waiting batches, and run their forward again (ddg)."""
    stash_dtype: Literal["bfloat16", "float16"] | None = None
    """Round the activations of waiting batches to this type (ddg)."""
    boundary_dtype: Literal["bfloat16", "float16"] | None = None
    """Round the tensors that are sent between stages to this type (ddg)."""

    stages: tuple[int, ...] = (2,)
    """K, the number of stages; one number or several."""
    bandwidth: str | None = None
    """Bandwidth of the link between two devices, such as 1Gbit or 2.5GB/s; by default the loopback
    of this machine is measured."""
    latency_ms: float | None = None
    """Latency of this link, one way, in milliseconds."""
    speeds: tuple[float, ...] = ()
    """Speed of each stage's device, relative to this machine; for one K only."""
    memory_cap: str | None = None
    """What a device may hold, such as 512MiB."""
    side_by_side: bool = True
    """Also measure how much slower processes compute at the same time on this machine."""

    def __post_init__(self) -> None:
        if (self.bandwidth is None) != (self.latency_ms is None):
            raise ConfigError(
                f"a link has a bandwidth and a latency (bandwidth: {self.bandwidth}, latency_ms: "
                f"{self.latency_ms}); give both, or neither to measure the loopback of this machine"
            )

    def train_config(self) -> TrainConfig:
        """Return the run that the plan is for, with the largest K.

        Raises:
            ConfigError: settings contradict each other.
        """
        shared = {name: getattr(self, name) for name in _shared_settings()}
        config = TrainConfig(stages=max(self.stages, default=0), **shared)
        config.check()
        return config

    def link(self) -> Link | Literal["loopback"]:
        """Return the link that was given, or say which one to measure."""
        if self.bandwidth is None or self.latency_ms is None:
            return "loopback"
        bandwidth = parse_bandwidth(self.bandwidth)
        return Link(bandwidth_bytes_per_s=bandwidth, latency_s=self.latency_ms / 1e3)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            name: value if isinstance(value, int | float | tuple | None) else str(value)
            for name, value in vars(self).items()
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predict, from a few seconds of measurement, how a network will train as K stages."""

    what: tyro.conf.OmitArgPrefixes[PlanConfig]
    figure: Path | None = None
    """Draw the plan into this file (PNG, PDF or SVG)."""
    json: bool = False
    """Print the plan as JSON instead of tables."""
    quiet: bool = False
    """Show no progress."""

    def __call__(self) -> None:
        config = self.what
        train, link = config.train_config(), config.link()
        cap = math.inf if config.memory_cap is None else parse_bytes(config.memory_cap)
        method = build_method(train)
        source = load_data(train)
        check_batches(train, source)
        inputs, targets = first_batch(train, source, torch.device("cpu"))
        found = plan(
            build_model(train, source),
            inputs,
            num_stages=config.stages,
            method=method,
            loss=lambda outputs: cross_entropy(outputs, targets),
            make_optimizer=make_optimizer(train),
            link=link,
            speeds=config.speeds or None,
            memory_cap_bytes=cap,
            threads=config.threads,
            side_by_side=config.side_by_side,
            say=lambda text: announce(text, quiet=self.quiet),
        )
        found = found.with_commands(lambda forecast: train_command(config, forecast))
        written = {}
        if self.figure is not None:
            title = f"{config.model}, batch {config.batch_size}, {config.method}"
            written["figure"] = str(draw_plan(found, self.figure, title))
        if self.json:
            plain = {"config": config.to_json(), "environment": environment(), **found.to_json()}
            print(json.dumps({**plain, **written}, indent=2))
        else:
            console = Console(highlight=False)
            console.print(found, crop=False)
            for name, path in written.items():
                console.print(f"{name:10}  {path}", soft_wrap=True)


def train_command(config: PlanConfig, forecast: Forecast) -> str:
    """Return the command that trains as planned."""
    words = ["delaygrad", "train"]
    for name in _shared_settings():
        value, flag = getattr(config, name), name.replace("_", "-")
        if value == getattr(PlanConfig, name):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    words += ["--stages", str(forecast.stages)]
    words += ["--cuts", *forecast.cuts] if forecast.cuts else []
    return shlex.join([*words, "--runtime", "distributed"])


def _shared_settings() -> list[str]:
    """Name the settings that train has too, but for the number of stages, in order."""
    of_train = {field.name for field in dataclasses.fields(TrainConfig)} - {"stages"}
    return [field.name for field in dataclasses.fields(PlanConfig) if field.name in of_train]
