"""The configuration of a run: one frozen value, checked before anything starts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from delaygrad.errors import ConfigError
from delaygrad.plain_values import unknown
from delaygrad.records import parse_json
from delaygrad.runtime.cutting import stages_of
from delaygrad.training.choices import (
    CHOICES,
    Cifar,
    Data,
    Digits,
    MethodOptions,
    Model,
    ResNet,
    Text,
)
from delaygrad.training.component import Component, Config
from delaygrad.training.optimizer_choices import SGD, Cosine, LRSchedule, Optimizer
from delaygrad.training.ranges import Count, CountOrNone, Few, Positive


@dataclass(frozen=True, kw_only=True)
class Length(Component):
    """How long a run is, and where it computes.

    Args:
        runtime: with local, one process computes all stages; with distributed, every stage has a
            process.
        threads: CPU threads of each process.
        device: where to compute; with cuda, the distributed runtime gives a GPU to each stage.
        epochs: passes over the training data.
        iterations: stop after this many batches instead of whole epochs.
        batch_size: samples per batch; the last batch of an epoch may be shorter.
        clip_norm: largest norm of the gradient, over all stages; by default nothing is clipped.
        amp: with bf16, compute under autocast to bfloat16.
    """

    runtime: Literal["local", "distributed"] = "local"
    threads: Few = 1
    device: Literal["cpu", "cuda"] = "cpu"
    epochs: Count = 10
    iterations: Count | None = None
    batch_size: Count = 64
    clip_norm: Positive | None = None
    amp: Literal["bf16"] | None = None


@dataclass(frozen=True, kw_only=True)
class Run(Length):
    """How long, on how many stages, and where.

    Args:
        stages: K, the number of pieces that the network is cut into.
        ranks: processes of the distributed runtime, which share the stages out evenly; by default
            one for each stage.
        cuts: first layer of each stage but the first; by default the cuts that balance measured
            time.
        timeout_s: seconds that a process waits for its neighbour before the run fails.
        seed: decides initial weights, data order, augmentation and dropout.
    """

    stages: Few = 2
    ranks: Few | None = None
    cuts: tuple[str, ...] = ()
    timeout_s: Annotated[float, Meta(gt=0, le=1e7)] = 600.0
    seed: Annotated[int, Meta(ge=0)] = 0

    @property
    def num_ranks(self) -> int:
        """Processes that compute."""
        return 1 if self.runtime == "local" else self.ranks or self.stages

    def stages_of(self, rank: int) -> range:
        """Return the stages that a rank holds."""
        return stages_of(rank, self.num_ranks, self.stages)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed >= 2**64:
            raise ConfigError(f"seed must be below 2**64 (seed: {self.seed}); take a smaller one")


@dataclass(frozen=True, kw_only=True)
class Records(Component):
    """What a run writes, and how often.

    Args:
        run_dir: folder for the results; by default a new one under runs/.
        log_every: iterations per line of records.jsonl.
        evaluate_every: epochs from one evaluation to the next.
        evaluation_batch_size: samples per batch of an evaluation.
        checkpoint_every: iterations from one checkpoint to the next; 0: none.
        keep_checkpoints: how many of the newest checkpoints stay.
        trace: iterations to record as a timeline, after a warm-up; 0: none.
        monitor_every: iterations from one measurement of staleness to the next; each measures one
            stage, in turn; 0: none.
    """

    run_dir: Path | None = None
    log_every: Count = 10
    evaluate_every: Count = 1
    evaluation_batch_size: Count = 256
    checkpoint_every: CountOrNone = 0
    keep_checkpoints: Count = 2
    trace: Annotated[int, Meta(ge=0, le=2**20)] = 0
    monitor_every: CountOrNone = 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A run: what is trained, by which method, how long, and what is recorded.

    Example:
        >>> TrainConfig.of(optimizer="adam").optimizer.lr
        0.001
        >>> TrainConfig.of(stages=0)
        Traceback (most recent call last):
        ...
        delaygrad.errors.ConfigError: wrong value in config (stages: 0; expected int >= 1)
        >>> TrainConfig.of(stage=3)
        Traceback (most recent call last):
        ...
        delaygrad.errors.ConfigError: unknown key in config (key: 'stage'); did you mean 'stages'?
    """

    choices: ClassVar = CHOICES
    renamed: ClassVar = {"probe_every": "monitor_every"}

    data: Data = Digits()
    model: Model = ResNet()
    method: MethodOptions
    optimizer: Optimizer = SGD()
    lr_schedule: LRSchedule = Cosine()
    run: Run = Run()
    records: Records = Records()

    @property
    def data_dir(self) -> Path | None:
        """The folder of the data; None if they need none, or none is given."""
        return self.data.data_dir if isinstance(self.data, Cifar | Text) else None

    @property
    def run_dir(self) -> Path:
        """The run's folder, which a resolved configuration has."""
        assert self.records.run_dir is not None
        return self.records.run_dir

    def check(self) -> None:
        """Raise ConfigError if a setting is missing, or contradicts another one.

        A file alone may still lack what a flag brings.
        """
        run, data = self.run, self.data
        if run.cuts and len(run.cuts) != run.stages - 1:
            raise ConfigError(
                "cuts must name one layer fewer than there are stages (stages: "
                f"{run.stages}, cuts: {' '.join(run.cuts)}); give {run.stages - 1}, or none"
            )
        if run.ranks is not None and (run.runtime == "local" or run.ranks > run.stages):
            raise ConfigError(
                "ranks are processes of the distributed runtime, each with a stage or more (ranks: "
                f"{run.ranks}, stages: {run.stages}, runtime: {run.runtime}); leave --ranks out, "
                "or add --runtime distributed and --stages"
            )
        micro_batches = self.method.build().schedule.micro_batches
        if micro_batches > run.batch_size:
            raise ConfigError(
                "micro_batches must not exceed the batch size (micro_batches: "
                f"{micro_batches}, batch_size: {run.batch_size}); lower it"
            )
        if isinstance(data, Cifar | Text) and data.data_dir is None:
            fetch = f"; delaygrad download {data.name} fetches them" * isinstance(data, Cifar)
            raise ConfigError(
                f"{data.name} needs its files; say where with --data-dir FOLDER{fetch}"
            )
        if ":" not in data.name + self.model.name and (
            (self.model.name == "gpt") != (data.name == "text")
        ):
            raise ConfigError(
                f"gpt learns text, and text needs gpt (model: {self.model.name}, data: {data.name})"
            )

    def learning_rate(self, iteration: int, num_iterations: int) -> float:
        """Return the learning rate of one iteration, from 0; the same for all stages.

        Example:
            >>> run = TrainConfig.of(lr=1.0, lr_schedule="step", lr_milestones=[0.5], warmup=2)
            >>> [run.learning_rate(t, 6) for t in range(6)]
            [0.5, 1.0, 1.0, 0.1, 0.1, 0.1]
        """
        schedule = self.lr_schedule
        factor = schedule.factor(iteration, num_iterations)
        if iteration < schedule.warmup:
            factor *= (iteration + 1) / schedule.warmup
        return self.optimizer.lr * factor

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the trained network, as plain values."""
        return deciding(self.to_json())


def deciding(values: dict[str, Any]) -> dict[str, Any]:
    """Return, of the flat form of any version, what applies and decides the trained network."""
    aside = {*TrainConfig.setting_names("records"), "runtime", "ranks", "timeout_s", "data_dir"}
    return {k: value for k, value in TrainConfig.applying(values).items() if k not in aside}


def require_settings(names: Iterable[str]) -> None:
    """Raise ConfigError unless all are names of settings."""
    known = TrainConfig.setting_names()
    for name in names:
        if name not in known:
            raise unknown("setting", name, known)


def load_config(path: Path) -> TrainConfig:
    """Read a configuration file: TOML or JSON; a run's own ``config.json`` as well."""
    return TrainConfig.from_json(read_settings(path), str(path))


def read_settings(path: Path) -> dict[str, Any]:
    """Read the flat form of a configuration from a file; values are not checked.

    In a run's own ``config.json``, options of choices that were not made are left out.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else parse_json(text)
    except OSError as error:
        raise ConfigError(f"cannot read the config file ({path}): {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cannot parse the config file ({path}): {error}") from error
    own = values.get("config") if isinstance(values, dict) else None
    if isinstance(own, dict):  # of a run, perhaps of a version that recorded every option
        return {key: value for key, value in own.items() if key in TrainConfig.applying(own)}
    if own is not None or not isinstance(values, dict):
        raise ConfigError(f"a config file holds keys and values ({path})")
    return values
