"""``delaygrad plan``: measure a network on this machine, and predict how it will train."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from delaygrad.cli.arguments import to_flags
from delaygrad.planning import Forecast
from delaygrad.planning.link import parse_bytes
from delaygrad.reproduce.stage_costs import LinkOptions
from delaygrad.results import write_png
from delaygrad.results.plan_figure import plan_panels
from delaygrad.training.assembly import check_batches, plan_run
from delaygrad.training.choices import (
    CHOICES,
    Data,
    Digits,
    MethodOptions,
    Model,
    ResNet,
)
from delaygrad.training.component import Config
from delaygrad.training.config import Run, TrainConfig
from delaygrad.training.optimizer_choices import SGD, Optimizer
from delaygrad.training.ranges import Count, CountOrNone
from delaygrad.training.reporter import announce
from delaygrad.training.run_folder import environment


@dataclass(frozen=True, kw_only=True)
class Machines(LinkOptions):
    """How many stages, on which devices.

    Args:
        stages: K, the number of stages; one number or several.
        batch_size: samples per batch.
        threads: CPU threads of each process.
        seed: seed of the initial weights and of the batch.
        speeds: speed of each stage's device, relative to this machine; for one K only.
        memory_cap: memory of a device, such as 512MiB; the cuts respect it.
        side_by_side: also measure how much slower processes compute at the same time on this
            machine.
    """

    stages: tuple[int, ...] = (2,)
    batch_size: Count = 64
    threads: Count = 1
    seed: CountOrNone = 0
    speeds: tuple[float, ...] = ()
    memory_cap: str | None = None
    side_by_side: bool = True


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """What is to be trained, and on what.

    Example:
        >>> PlanConfig.of(stages=[2, 4], bandwidth="1Gbit", latency_ms=0.2).machines.link()
        Link(bandwidth_bytes_per_s=125000000.0, latency_s=0.0002)
    """

    choices: ClassVar = {name: CHOICES[name] for name in ("data", "model", "method", "optimizer")}

    data: Data = Digits()
    model: Model = ResNet()
    method: MethodOptions
    optimizer: Optimizer = SGD()
    machines: Machines = Machines()

    def train_config(self) -> TrainConfig:
        """Return the run that the plan is for, with the largest K.

        Raises:
            ConfigError: settings contradict each other.
        """
        own = self.machines
        run = Run(
            stages=max(own.stages, default=0),
            batch_size=own.batch_size,
            threads=own.threads,
            seed=own.seed,
        )
        config = TrainConfig(
            data=self.data, model=self.model, method=self.method, optimizer=self.optimizer, run=run
        )
        config.check()
        return config


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predict, from a few seconds of measurement, how a network will train as K stages.

    Args:
        figure: draw the plan into this file (PNG, PDF or SVG).
        json: print the plan as JSON instead of tables.
        quiet: show no progress.
    """

    what: PlanConfig
    figure: Path | None = None
    json: bool = False
    quiet: bool = False

    def __call__(self) -> None:
        config, machines = self.what, self.what.machines
        train, link = config.train_config(), machines.link()
        cap = math.inf if machines.memory_cap is None else parse_bytes(machines.memory_cap)
        source = config.data.load()
        method = config.method.build(source)
        check_batches(train, source)
        found = plan_run(
            train,
            source,
            num_stages=machines.stages,
            method=method,
            link=link,
            speeds=machines.speeds or None,
            memory_cap_bytes=cap,
            side_by_side=machines.side_by_side,
            say=lambda text: announce(text, quiet=self.quiet),
        )
        found = found.with_commands(lambda forecast: train_command(train, forecast))
        written = {}
        if self.figure is not None:
            title = f"{config.model.name}, batch {machines.batch_size}, {config.method.name}"
            written["figure"] = str(write_png({"": plan_panels(found)}, self.figure, title))
        if self.json:
            plain = {"config": config.to_json(), "environment": environment(), **found.to_json()}
            print(json.dumps({**plain, **written}, indent=2))
        else:
            console = Console(highlight=False)
            console.print(found, crop=False)
            for name, path in written.items():
                console.print(f"{name:10}  {path}", soft_wrap=True)


def train_command(config: TrainConfig, forecast: Forecast) -> str:
    """Return the command that trains as planned."""
    words = ["delaygrad", "train", *to_flags(config.replace(stages=None))]
    words += ["--stages", str(forecast.stages)]
    words += ["--cuts", *forecast.cuts] if forecast.cuts else []
    return shlex.join([*words, "--runtime", "distributed"])
