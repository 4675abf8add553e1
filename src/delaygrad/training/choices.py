"""What a run chooses between; optimizers and their schedules are in a file of their own."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import nn

from delaygrad import models
from delaygrad.data import DataSource, load
from delaygrad.errors import ConfigError
from delaygrad.methods import METHODS, Method
from delaygrad.training.component import Choice, Kind
from delaygrad.training.optimizer_choices import SGD, Adam, Cosine, LRSchedule, Muon, Step, Theorem
from delaygrad.training.ranges import (
    CountOrNone,
    Probability,
    Size,
)


class Data(Kind):
    """The data: digits (of scikit-learn), cifar10, cifar100, or text (the characters of a file).

    PACKAGE.MODULE:FUNCTION calls your own function; it returns a delaygrad.data.DataSource.
    """

    def load(self) -> DataSource:
        """Read the data into memory."""
        return load(self.name, **self.options())


@dataclass(frozen=True, kw_only=True)
class Digits(Data):
    """8x8 images of digits.

    Args:
        holdout: training samples held back for validation; the test set is then used at the end
            only.
    """

    name: str = "digits"
    holdout: CountOrNone = 0


@dataclass(frozen=True, kw_only=True)
class Cifar(Digits):
    """32x32 colour images.

    Args:
        data_dir: folder with the files, as ``delaygrad download`` writes them.
        augment: random crops and flips.
    """

    data_dir: Path | None = None
    augment: bool = True


@dataclass(frozen=True, kw_only=True)
class Text(Digits):
    """Characters of a file.

    Args:
        data_dir: the file, or a folder with ``input.txt``.
        context_length: characters per sample.
    """

    data_dir: Path | None = None
    context_length: Size = 128


@dataclass(frozen=True, kw_only=True)
class OwnData(Data):
    """What a function of the user's returns."""

    def load(self) -> DataSource:
        """Call the function."""
        source = _call(self.name, "data")
        if not isinstance(source, DataSource):
            raise ConfigError(
                f"the function returned no DataSource ({self.name}: {type(source).__name__}); "
                "return a delaygrad.data.DataSource"
            )
        return source


class Model(Kind):
    """The network: resnet8, resnet20, resnet56, resnet110 (any depth 6n+2), mlp, or gpt (for text).

    PACKAGE.MODULE:FUNCTION calls your own function; it returns a torch.nn.Module.
    """

    channels_last = False

    def build(self, source: DataSource) -> nn.Module:
        """Build the network for samples of the data; a ConfigError says why it cannot be built."""
        options = {name: v for name, v in self.options().items() if name != "channels_last"}
        try:
            return models.build(self.name, source.sample_shape, source.num_classes, **options)
        except (ValueError, RuntimeError, OverflowError) as error:  # torch: it is too large
            raise ConfigError(str(error)) from error

    def require_memory(self, source: DataSource) -> None:
        """Raise ConfigError unless the parameters fit in this machine's memory."""
        with torch.device("meta"):
            skeleton = self.build(source)
        needed = sum(parameter.nbytes for parameter in skeleton.parameters())
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > memory:
            raise ConfigError(
                "the network is larger than this machine's memory (parameters: "
                f"{needed / 2**30:,.1f} GiB, memory: {memory / 2**30:,.1f} GiB); lower --width or "
                "--depth"
            )


@dataclass(frozen=True, kw_only=True)
class ResNet(Model):
    """A residual network for images.

    Args:
        channels_last: keep images as NHWC in memory, which makes convolutions on CPUs faster.
    """

    name: str = "resnet8"
    channels_last: bool = True


@dataclass(frozen=True, kw_only=True)
class MLP(Model):
    """Linear layers with ReLU.

    Args:
        width: units per layer; by default the network's own choice.
        depth: linear layers; by default the network's own choice.
        dropout: probability of dropping a unit.
    """

    width: Size | None = None
    depth: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    dropout: Probability = 0.0


@dataclass(frozen=True, kw_only=True)
class GPT(MLP):
    """A transformer for text.

    Args:
        width: units per layer; by default the network's own choice.
        depth: blocks; by default the network's own choice.
        heads: attention heads; by default the network's own choice.
    """

    heads: Size | None = None


@dataclass(frozen=True, kw_only=True)
class OwnModel(ResNet):
    """What a function of the user's returns; torch's random seed is set before the call."""

    def build(self, source: DataSource) -> nn.Module:
        """Call the function."""
        model = _call(self.name, "model")
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"the function returned no network ({self.name}: {type(model).__name__}); return "
                "a torch.nn.Module"
            )
        return model

    def require_memory(self, source: DataSource) -> None:
        """Leave the size of the network to the user."""


class MethodOptions(Kind):
    """The method by which the stages train.

    ddg is the paper's rule, lookahead is for many stages, auto chooses by their number, bp is
    backpropagation; docs/methods.md describes each. ``--method NAME --help`` shows its options.
    """

    def build(self, source: DataSource | None = None) -> Method:
        """Make the method; a ConfigError says which options are wrong.

        Without ``source``, the data, no label is conditioned on.
        """
        options = self.options()
        for name, hint in typing.get_type_hints(METHODS[self.name]).items():
            if hint == torch.dtype | None and options[name] is not None:
                options[name] = getattr(torch, options[name])
        for name, asked in ASKED.items():
            if options.pop(asked, False) and source is not None:
                options[name] = getattr(source, name)
        try:
            return METHODS[self.name](**options)
        except ValueError as error:
            raise ConfigError(str(error)) from error


ASKED = {"num_classes": "label_conditioned"}
"""Options of methods that the data know; the setting only says whether the method is to have it."""

_Number = Annotated[int, Meta(le=100_000)]
_LIMITED: dict[Any, Any] = {
    int: _Number,
    int | None: _Number | None,
    float: Annotated[float, Meta(le=1e30)],
    torch.dtype | None: Literal["bfloat16", "float16"] | None,
}
"""What a setting may be, by the annotation of the method's option."""


def _methods() -> dict[str, type[Kind]]:
    return {name: _method_kind(name, make) for name, make in METHODS.items()}


@functools.cache
def _method_kind(name: str, make: Callable[..., Method]) -> type[Kind]:
    """Make the class of a method's options from the method's signature."""
    hints, fields = typing.get_type_hints(make), list[Any]()
    for option, parameter in inspect.signature(make).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        default = dataclasses.MISSING if required else parameter.default
        hint = hints[option]
        if option in ASKED:
            option, hint, default = ASKED[option], bool, False
        else:
            hint = _LIMITED.get(hint, hint)
        fields.append((option, hint, dataclasses.field(default=default)))
    fields.append(("name", str, dataclasses.field(default=name)))
    kind = dataclasses.make_dataclass(
        make.__name__, fields, bases=(MethodOptions,), frozen=True, kw_only=True
    )
    kind.__doc__ = make.__doc__
    return kind


def _call(name: str, label: str) -> Any:
    """Call the function that PACKAGE.MODULE:FUNCTION names."""
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"cannot import the function ({label}: {name}): {error}; write PACKAGE.MODULE:FUNCTION"
        ) from error


def _own_data(name: str) -> type[Kind] | None:
    return OwnData if ":" in name else None


def _other_model(name: str) -> type[Kind] | None:
    if ":" in name:
        return OwnModel
    return ResNet if re.fullmatch(r"resnet\d+", name) else None


CHOICES = {
    "data": Choice(
        "digits",
        lambda: {"digits": Digits, "cifar10": Cifar, "cifar100": Cifar, "text": Text},
        _own_data,
    ),
    "model": Choice(
        "resnet8",
        lambda: {
            **dict.fromkeys(("resnet8", "resnet20", "resnet56", "resnet110"), ResNet),
            "mlp": MLP,
            "gpt": GPT,
        },
        _other_model,
    ),
    "method": Choice("ddg", _methods),
    "optimizer": Choice("sgd", lambda: {"sgd": SGD, "adam": Adam, "adamw": Adam, "muon": Muon}),
    "lr_schedule": Choice(
        "cosine",
        lambda: {"constant": LRSchedule, "step": Step, "cosine": Cosine, "theorem": Theorem},
    ),
}
"""The choices, under the keys that configurations give them."""
