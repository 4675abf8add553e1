"""What to plan: the network, the devices and the link."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from delaygrad.errors import ConfigError, PartitionError
from delaygrad.methods import Method
from delaygrad.partition import Link, Pipelined
from delaygrad.partition.link import parse_bandwidth, parse_bytes
from delaygrad.training.assembly import build_method
from delaygrad.training.config import TrainConfig

_SLACKS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Predict how a network will train as K stages.

    Example:
        >>> PlanConfig(stages=(2, 4), bandwidth="1Gbit", latency_ms=0.2).link()
        Link(bandwidth_bytes_per_s=125000000.0, latency_s=0.0002)
    """

    data: Literal["digits", "cifar10", "cifar100", "text"] = "digits"
    """As for train; a batch of it is what the network is measured on."""
    data_dir: Path | None = None
    """Where the files of cifar10, cifar100 or text are."""
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
    """Decides initial weights and the batch."""

    method: str = "ddg"
    """ddg, or bp."""
    slack: int = 0
    """More iterations of delay per boundary, to hide a slow link (ddg)."""
    micro_batches: int = 1
    """Parts that each batch is split into."""
    recompute: bool = False
    """Keep the inputs of waiting batches only, and run their forward again (ddg)."""
    stash_dtype: Literal["bfloat16", "float16"] | None = None
    """Round the activations of waiting batches to this type (ddg)."""
    boundary_dtype: Literal["bfloat16", "float16"] | None = None
    """Round what is sent between stages to this type (ddg)."""

    stages: tuple[int, ...] = (2,)
    """K, one or several."""
    bandwidth: str | None = None
    """Of the link between two devices, such as 1Gbit or 2.5GB/s; by default this machine's
    loopback is measured."""
    latency_ms: float | None = None
    """Of the same link, one way, in milliseconds."""
    speeds: tuple[float, ...] = ()
    """Speed of each stage's device, relative to this one; one K only."""
    memory_cap: str | None = None
    """What a device may hold, such as 512MiB."""
    side_by_side: bool = True
    """Also measure what processes lose that compute side by side on this machine."""

    def __post_init__(self) -> None:
        if not self.stages or min(self.stages) < 1:
            raise ConfigError(f"stages must be at least 1 (stages: {list(self.stages)})")
        if self.speeds and (len(set(self.stages)) > 1 or len(self.speeds) != self.stages[0]):
            raise ConfigError(
                f"speeds give each stage of one K a number (speeds: {list(self.speeds)}, stages: "
                f"{list(self.stages)})"
            )
        if not all(0 < speed < math.inf for speed in self.speeds):
            raise ConfigError(f"speeds must be positive and finite (speeds: {list(self.speeds)})")
        if (self.bandwidth is None) != (self.latency_ms is None):
            raise ConfigError(
                f"a link has a bandwidth and a latency (bandwidth: {self.bandwidth}, latency_ms: "
                f"{self.latency_ms}); give both, or none to measure this machine's loopback"
            )

    def check(self) -> None:
        """Check what settings mean, and together.

        Raises:
            ConfigError: one is missing, cannot be read, or contradicts another one.
        """
        self.train_config(max(self.stages)).check()
        self.chosen_method()
        self.link()
        self.cap_bytes()

    def train_config(self, stages: int) -> TrainConfig:
        """Return the run that the plan is for."""
        own = {field.name for field in dataclasses.fields(self)} - {"stages"}
        shared = own & {field.name for field in dataclasses.fields(TrainConfig)}
        return TrainConfig(stages=stages, **{name: getattr(self, name) for name in shared})

    def chosen_method(self, slack: int | None = None) -> Method:
        """Return the method, or the same with another slack if it has one.

        Raises:
            ConfigError: its options contradict each other.
        """
        train = self.train_config(max(self.stages))
        return build_method(train if slack is None else dataclasses.replace(train, slack=slack))

    def pipelined(self) -> Pipelined:
        """Return how batches run, for the forecast."""

        def lag(stage_index: int, num_stages: int, slack: int) -> int:
            return self.chosen_method(slack).schedule.lag(stage_index, num_stages)

        return Pipelined(
            lag=lag,
            slack=self.slack,
            slacks=_SLACKS if hasattr(self.chosen_method(), "slack") else (),
            micro_batches=self.micro_batches,
            recompute=self.recompute,
            stash_rounded=self.stash_dtype is not None,
            boundary_rounded=self.boundary_dtype is not None,
        )

    def link(self) -> Link | None:
        """Return the link that was given; None is to be measured."""
        if self.bandwidth is None or self.latency_ms is None:
            return None
        try:
            bandwidth = parse_bandwidth(self.bandwidth)
            return Link(bandwidth_bytes_per_s=bandwidth, latency_s=self.latency_ms / 1e3)
        except PartitionError as error:
            raise ConfigError(str(error)) from error

    def cap_bytes(self) -> float:
        """Return the memory of a device; infinite where no cap was given."""
        try:
            return math.inf if self.memory_cap is None else parse_bytes(self.memory_cap)
        except PartitionError as error:
            raise ConfigError(str(error)) from error
