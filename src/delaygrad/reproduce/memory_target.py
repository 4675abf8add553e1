"""A target that measures memory: the peak of each stage, for several K."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from delaygrad import models
from delaygrad.bench.memory import MemoryCase
from delaygrad.errors import ConfigError
from delaygrad.reproduce.header import Header
from delaygrad.reproduce.reading import unknown
from delaygrad.training.assembly import build_method
from delaygrad.training.config import METHOD_OPTIONS, config_from_json
from delaygrad.training.evaluation import cross_entropy

_SAMPLE_SHAPE, _NUM_CLASSES = (3, 32, 32), 10


@dataclass(frozen=True, kw_only=True)
class MemoryLine:
    """The same network and method with one or several K.

    Attributes:
        model: by its name; it is given images of 3x32x32.
        stages: K.
        batch_size: images.
        method: with delayed backward passes.
        options: of the method, by name.
        device: cpu: a process for each stage; cuda: all stages in one, on one GPU, and their total.
    """

    model: str
    stages: tuple[int, ...]
    batch_size: int = 128
    method: str = "ddg"
    options: dict[str, Any] = field(default_factory=dict)
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def variant(self) -> str:
        """Its options in short."""
        return "-".join(
            name.replace("_", "-") + ("" if value is True else str(value))
            for name, value in self.options.items()
        )

    def case(self, num_stages: int) -> MemoryCase:
        """Return what is measured for one K."""
        settings = {"method": self.method, "stages": num_stages, **self.options}
        return MemoryCase(
            make=partial(_training, self.model, self.batch_size),
            loss_fn=cross_entropy,
            num_stages=num_stages,
            method=build_method(config_from_json(settings)),
        )

    def settings(self, num_stages: int, cuts: tuple[str, ...] | None) -> dict[str, Any]:
        """Return what decides the measurement, in plain values."""
        known = None if cuts is None else list(cuts)
        return {**dataclasses.asdict(self), "stages": num_stages, "cuts": known}

    def name(self, num_stages: int) -> str:
        """What the results are kept under."""
        words = (self.model, f"b{self.batch_size}", self.method, self.variant, self.device)
        return f"{'-'.join(word for word in words if word)}-k{num_stages}"


@dataclass(frozen=True, kw_only=True)
class MemoryScale:
    """How much is measured.

    Attributes:
        about: in words: what differs from the paper, and about how long it takes.
        lines: in order.
    """

    about: str
    lines: tuple[MemoryLine, ...]

    def cases(self) -> Iterator[tuple[MemoryLine, int]]:
        """List the lines, one for each K."""
        for line in self.lines:
            for num_stages in line.stages:
                yield line, num_stages


@dataclass(frozen=True, kw_only=True)
class MemoryTarget(Header):
    """What a ``target.toml`` of kind memory says.

    Attributes:
        scales: by name.
        cuts: network -> number of stages -> first layer of each stage but the first; what is not
            there is balanced by measured time.
    """

    scales: dict[str, MemoryScale]
    cuts: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    def cuts_of(self, line: MemoryLine, num_stages: int) -> tuple[str, ...] | None:
        """Return where the network is to be cut; None: where the time balances."""
        return () if num_stages == 1 else self.cuts.get(line.model, {}).get(str(num_stages))

    def check(self, place: str) -> None:
        """Check what settings mean.

        Raises:
            ConfigError: a network or an option is unknown, or a number out of range.
        """
        for scale_name, scale in self.scales.items():
            where = f"{place}: scales.{scale_name}"
            for line, num_stages in scale.cases():
                for option in line.options:
                    if option not in METHOD_OPTIONS:
                        raise unknown(f"option in {where}", option, METHOD_OPTIONS, "option")
                if line.batch_size < 1:
                    raise ConfigError(
                        f"batch_size must be at least 1 in {where} (batch_size: {line.batch_size})"
                    )
                settings = {"method": line.method, "stages": num_stages, **line.options}
                config_from_json(settings, where).check()
                try:
                    with torch.device("meta"):
                        models.build(line.model, _SAMPLE_SHAPE, _NUM_CLASSES)
                except ValueError as error:
                    raise ConfigError(f"{error} (in {where})") from error


def _training(model: str, batch_size: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    network = models.build(model, _SAMPLE_SHAPE, _NUM_CLASSES)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, *_SAMPLE_SHAPE).to(memory_format=torch.channels_last)
    return network, images, torch.randint(_NUM_CLASSES, (batch_size,))
