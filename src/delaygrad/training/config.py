"""The configuration of a run: one frozen value, checked before anything starts."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from delaygrad.errors import ConfigError
from delaygrad.methods import METHODS, foreign_options
from delaygrad.records import parse_json


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a network as K stages, with delayed gradients or by backpropagation.

    Example:
        >>> TrainConfig(optimizer="adam").base_lr
        0.001
        >>> TrainConfig(stages=0)
        Traceback (most recent call last):
        ...
        delaygrad.errors.ConfigError: stages must be at least 1 (stages: 0)
    """

    data: Literal["digits", "cifar10", "cifar100", "text"] = "digits"
    """digits: those bundled with scikit-learn; text: the characters of a file."""
    data_dir: Path | None = None
    """Where the files of cifar10, cifar100 or text are."""
    holdout: int = 0
    """Training samples held back for validation; then the test set is used at the end only."""
    augment: bool = True
    """Random crops and flips, for CIFAR."""

    model: str = "resnet8"
    """resnet8, resnet20, resnet56, resnet110 (any depth 6n+2), mlp, or gpt."""
    width: int | None = None
    """Units per layer (mlp, gpt); by default the model's own choice, as for the next two."""
    depth: int | None = None
    """Linear layers (mlp) or blocks (gpt)."""
    heads: int | None = None
    """Attention heads (gpt)."""
    context_length: int = 128
    """Characters per sample (text)."""
    dropout: float = 0.0
    """Probability of dropping a unit (mlp, gpt)."""
    channels_last: bool = True
    """Keep images as NHWC in memory, which makes convolutions on CPUs faster."""

    method: str = "ddg"
    """ddg: decoupled parallel backpropagation with delayed gradients; bp: backpropagation; dni:
    decoupled neural interfaces, with synthetic gradients."""
    slack: int = 0
    """More iterations of delay per boundary, to hide a slow link (ddg)."""
    micro_batches: int = 1
    """Parts that each batch is split into: less memory and, in updates, less delay."""
    recompute: bool = False
    """Keep the inputs of waiting batches only, and run their forward again: less memory (ddg)."""
    stash_dtype: Literal["bfloat16", "float16"] | None = None
    """Round the activations of waiting batches to this type: less memory, not exact (ddg);
    float16 overflows above 65504."""
    boundary_dtype: Literal["bfloat16", "float16"] | None = None
    """Round what is sent between stages to this type: less traffic, not exact (ddg); in float16
    small gradients vanish."""
    weights: Literal["stash", "live"] = "stash"
    """What a backward meets: the weights of its forward, or, as in the code of the paper's authors,
    those of today (ddg)."""
    label_conditioned: bool = False
    """Show the labels to what makes up the error gradients (dni)."""
    synthesizer_width: int | None = None
    """Hidden channels (default 128) or units (1024) of it (dni)."""
    synthesizer_layers: int = 2
    """Hidden layers of it (dni)."""
    synthesizer_kernel: int = 5
    """Side of its convolutions, odd (dni)."""
    synthesizer_lr: float = 1e-4
    """Learning rate of its Adam (dni)."""
    stages: int = 2
    """K, the number of pieces that the network is cut into."""
    cuts: tuple[str, ...] = ()
    """First layer of each stage but the first; by default what balances the measured time."""
    runtime: Literal["local", "distributed"] = "local"
    """local: all stages in this process; distributed: a process for each stage."""
    threads: int = 1
    """CPU threads of each process."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute; with cuda, the distributed runtime gives a GPU to each stage."""
    timeout_s: float = 600.0
    """Seconds that a process waits for its neighbour before it gives up."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The optimizer of every stage."""
    lr: float | None = None
    """Learning rate; by default 0.1 for sgd, 0.001 for adam and adamw."""
    momentum: float = 0.9
    """Momentum (sgd)."""
    nesterov: bool = False
    """Nesterov's momentum (sgd)."""
    weight_decay: float = 5e-4
    """Weight decay: coupled for sgd and adam, decoupled for adamw."""
    lr_schedule: Literal["constant", "step", "cosine", "theorem"] = "cosine"
    """How the learning rate goes from iteration to iteration, the same for all stages; theorem:
    lr (1 + t / lr_time_scale)^(-lr_power), as the convergence theorem asks."""
    lr_milestones: tuple[float, ...] = (0.5, 0.75)
    """Fractions of the run after which the learning rate falls (step)."""
    lr_factor: float = 0.1
    """What the learning rate is multiplied by at each milestone (step)."""
    lr_time_scale: float = 1000.0
    """Iterations after which the learning rate has fallen to 2^-lr_power of itself (theorem)."""
    lr_power: float = 0.6
    """How fast it falls in the end; above 1/2 and at most 1 (theorem)."""
    warmup: int = 0
    """Iterations over which the learning rate rises from zero."""

    epochs: int = 10
    """Passes over the training data."""
    iterations: int | None = None
    """Stop after this many batches instead of whole epochs."""
    batch_size: int = 64
    """Samples per batch; the last batch of an epoch may be shorter."""
    seed: int = 0
    """Decides initial weights, data order, augmentation and dropout."""

    run_dir: Path | None = None
    """Folder for the results; by default a new one under runs/."""
    log_every: int = 10
    """Iterations per line of records.jsonl."""
    evaluate_every: int = 1
    """Epochs from one evaluation to the next."""
    evaluation_batch_size: int = 256
    """Samples per batch of an evaluation."""
    checkpoint_every: int = 0
    """Iterations from one checkpoint to the next; 0: none."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    trace: int = 0
    """Iterations to record as a timeline, after a warm-up; 0: none."""
    probe_every: int = 0
    """Iterations from one measurement of how well the gradients point to the next; 0: none. For the
    local runtime."""

    def __post_init__(self) -> None:
        for name in (
            "stages", "threads", "width", "depth", "heads", "context_length", "epochs",
            "iterations", "batch_size", "log_every", "evaluate_every", "evaluation_batch_size",
            "keep_checkpoints", "micro_batches", "synthesizer_width", "synthesizer_kernel",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1", name, self)
        for name in (
            "slack", "holdout", "warmup", "checkpoint_every", "trace", "weight_decay", "momentum",
            "seed", "synthesizer_layers", "probe_every",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"{name} must be finite, not negative", name, self)
        for name in ("lr", "timeout_s", "lr_factor", "lr_time_scale", "synthesizer_lr"):
            value = getattr(self, name)
            ok = value is None or 0 < value < math.inf
            _require(ok, f"{name} must be positive and finite", name, self)
        _require(self.seed < 2**64, "seed must be below 2**64", "seed", self)
        for name, most in _AT_MOST.items():
            _require(
                (getattr(self, name) or 0) <= most, f"{name} must be at most {most}", name, self
            )
        power_ok = 0.5 < self.lr_power <= 1
        _require(power_ok, "lr_power must be above 1/2 and at most 1", "lr_power", self)
        _require(0 <= self.dropout < 1, "dropout must be at least 0 and below 1", "dropout", self)
        _require(
            all(0 < fraction < 1 for fraction in self.lr_milestones),
            "lr_milestones are fractions of the run, between 0 and 1", "lr_milestones", self,
        )  # fmt: skip

    @property
    def base_lr(self) -> float:
        """The learning rate before its schedule."""
        return self.lr or (0.1 if self.optimizer == "sgd" else 0.001)

    def check(self) -> None:
        """Check what settings mean together; a file alone may still lack what a flag brings.

        Raises:
            ConfigError: a setting is missing, or contradicts another one.
        """
        _require(
            not self.cuts or len(self.cuts) == self.stages - 1,
            f"cuts must name one layer fewer than there are stages (stages: {self.stages})",
            "cuts", self,
        )  # fmt: skip
        if self.method not in METHODS:
            raise ConfigError(_unknown("method", self.method, METHODS))
        for name in METHOD_OPTIONS:
            foreign = name in foreign_options(self.method)
            if foreign and getattr(self, name) != _DEFAULTS[name]:
                raise ConfigError(
                    f"option without effect ({name}: {getattr(self, name)}); method "
                    f"{self.method} does not have it: leave it out"
                )
        _require(
            self.micro_batches <= self.batch_size,
            f"micro_batches must not exceed the batch size (batch_size: {self.batch_size})",
            "micro_batches", self,
        )  # fmt: skip
        if self.probe_every and (
            self.runtime != "local" or self.micro_batches > 1 or self.dropout > 0
        ):
            raise ConfigError(
                "probe_every needs all stages in one process, whole batches and no dropout, whose "
                f"noise it would measure (runtime: {self.runtime}, micro_batches: "
                f"{self.micro_batches}, dropout: {self.dropout:g})"
            )
        if self.data != "digits" and self.data_dir is None:
            raise ConfigError(f"{self.data} needs its files; say where with --data-dir FOLDER")
        if (self.model == "gpt") != (self.data == "text"):
            raise ConfigError(
                f"gpt learns text, and text needs gpt (model: {self.model}, data: {self.data})"
            )
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov needs a momentum above 0 (momentum: 0.0)")
        for name, (switch, setting) in _ONLY_WITH.items():
            chosen = getattr(self, switch)
            if chosen != setting and getattr(self, name) != _DEFAULTS[name]:
                raise ConfigError(
                    f"option without effect ({name}: {getattr(self, name)}); it belongs to "
                    f"{switch} {setting}, not {chosen}: leave it out"
                )

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the trained network, as plain values."""
        values = {**self.to_json(), "lr": self.base_lr}
        return {name: value for name, value in values.items() if name not in _NOT_DECIDING}

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``config_from_json`` reads them back."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}

_AT_MOST = {
    "timeout_s": 10_000_000,
    **dict.fromkeys(("threads", "stages", "slack", "synthesizer_layers"), 1024),
    **dict.fromkeys(("depth", "micro_batches", "synthesizer_kernel"), 10_000),
    **dict.fromkeys(("width", "heads", "context_length", "synthesizer_width", "trace"), 2**20),
    **dict.fromkeys(
        (
            "holdout", "warmup", "epochs", "iterations", "batch_size", "log_every",
            "evaluate_every", "evaluation_batch_size", "checkpoint_every", "keep_checkpoints",
            "probe_every",
        ),
        10**12,
    ),
    **dict.fromkeys(("lr", "synthesizer_lr", "lr_factor", "momentum", "weight_decay"), 1e30),
}  # fmt: skip
"""Beyond these nothing useful happens, and what torch, threads or clocks do is not foreseen."""

_NOT_DECIDING = frozenset({
    "runtime", "timeout_s", "data_dir", "run_dir", "log_every", "evaluate_every",
    "evaluation_batch_size", "checkpoint_every", "keep_checkpoints", "trace", "probe_every",
})  # fmt: skip

METHOD_OPTIONS = (
    "slack", "micro_batches", "recompute", "stash_dtype", "boundary_dtype", "weights",
    "synthesizer_width", "synthesizer_layers", "synthesizer_kernel", "synthesizer_lr",
)  # fmt: skip
"""Settings that a method has under the same names, if it has them."""

_ONLY_WITH = {
    "context_length": ("data", "text"),
    "label_conditioned": ("method", "dni"),
    "momentum": ("optimizer", "sgd"),
    "nesterov": ("optimizer", "sgd"),
    "lr_milestones": ("lr_schedule", "step"),
    "lr_factor": ("lr_schedule", "step"),
    "lr_time_scale": ("lr_schedule", "theorem"),
    "lr_power": ("lr_schedule", "theorem"),
}
"""Settings that mean something only where another one has a certain value."""


def config_from_json(values: dict[str, Any], source: str = "config") -> TrainConfig:
    """Build a configuration from plain values.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of range.

    Example:
        >>> config_from_json({"stage": 3})
        Traceback (most recent call last):
        ...
        delaygrad.errors.ConfigError: unknown key in config (key: 'stage'); did you mean 'stages'?
    """
    kinds = typing.get_type_hints(TrainConfig)
    checked = {}
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(_unknown(f"key in {source}", key, kinds, label="key"))
        checked[key] = _convert(key, value, kinds[key], source)
    return TrainConfig(**checked)


def require_settings(names: Iterable[str]) -> None:
    """Raise ConfigError unless all are names of settings."""
    for name in names:
        if name not in _DEFAULTS:
            raise ConfigError(_unknown("setting", name, _DEFAULTS))


def load_config(path: Path) -> TrainConfig:
    """Read a configuration file: TOML or JSON; a run's own ``config.json`` as well.

    Raises:
        ConfigError: the file is missing or unreadable, or a key or value is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else parse_json(text)
    except OSError as error:
        raise ConfigError(f"cannot read the config file ({path}): {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"cannot parse the config file ({path}): {error}") from error
    values = values.get("config", values) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise ConfigError(f"a config file holds keys and values ({path})")
    return config_from_json(values, str(path))


def _convert(key: str, value: Any, kind: Any, source: str) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if value in options:
            return value
        raise ConfigError(_unknown(key, value, options))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(key, item, options[0], source) for item in value)
    if kind is float and type(value) is int and abs(value) < 10**300:
        return float(value)
    if type(value) is kind:
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"wrong type in {source} ({key}: {shown(value)}; expected: {expected})")


def _require(condition: bool, rule: str, name: str, config: TrainConfig) -> None:
    if not condition:
        raise ConfigError(f"{rule} ({name}: {getattr(config, name)})")


def shown(value: object) -> str:
    """Return a value for a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unknown(what: str, given: object, known: Any, label: str | None = None) -> str:
    close = difflib.get_close_matches(str(given), [str(item) for item in known], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(map(str, known))}"
    return f"unknown {what} ({label or what}: {shown(given)}); {hint}"
