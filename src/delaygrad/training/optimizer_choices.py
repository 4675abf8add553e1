"""The optimizers of a run, and their learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import nn

from delaygrad.errors import ConfigError
from delaygrad.theory import PolynomialDecay
from delaygrad.training.component import Kind
from delaygrad.training.ranges import (
    CountOrNone,
    Fraction,
    NotNegative,
    Positive,
)

_HIDDEN = "is_hidden_matrix"
_EMBEDDINGS = nn.Embedding | nn.EmbeddingBag


class Optimizer(Kind):
    """The optimizer of every stage: sgd, adam, adamw or muon."""

    lr: float

    def make(
        self, parameters: Iterable[nn.Parameter]
    ) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        """Make the optimizer of one stage, or several."""
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "sgd": torch.optim.SGD,
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
        }
        return kinds[self.name](parameters, **self.options())


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent.

    Args:
        lr: learning rate before its schedule.
        momentum: momentum; 0 is none.
        nesterov: Nesterov's momentum.
        weight_decay: weight decay, coupled to the learning rate.
    """

    name: str = "sgd"
    lr: Positive = 0.1
    momentum: NotNegative = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov needs a momentum above 0 (momentum: 0.0); raise it")


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam; adamw decouples the weight decay.

    Args:
        lr: learning rate before its schedule.
        betas: decay of the averages of gradients and of their squares.
        weight_decay: weight decay.
    """

    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NotNegative = 5e-4


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for hidden matrices, AdamW for the other parameters, at one learning rate.

    Muon's updates are scaled to the size of AdamW's (0.2 sqrt(larger side) of a matrix).

    Args:
        lr: learning rate before its schedule, of both.
        momentum: Nesterov's momentum of the hidden matrices.
        weight_decay: weight decay of both.
    """

    lr: Positive = 1e-3
    momentum: Fraction = 0.95
    weight_decay: NotNegative = 0.1

    def make(self, parameters: Iterable[nn.Parameter]) -> list[torch.optim.Optimizer]:
        """Make both optimizers of one stage; each may have no parameter there."""
        hidden, others = list[nn.Parameter](), list[nn.Parameter]()
        for parameter in parameters:
            (hidden if getattr(parameter, _HIDDEN, False) else others).append(parameter)
        options = self.options()
        momentum = options.pop("momentum")
        return [
            torch.optim.Muon(
                [{"params": hidden}], adjust_lr_fn="match_rms_adamw", momentum=momentum, **options
            ),
            torch.optim.AdamW([{"params": others}], **options),
        ]


def mark_hidden_matrices(network: nn.Module) -> None:
    """Mark the parameters that Muon trains; on the whole network, so that all K have the same.

    They are the parameters of two dimensions, but not those of embeddings, nor those of the
    network's first and last module with a parameter of two or more dimensions.
    """
    wide = [m for m in network.modules() if any(p.dim() > 1 for p in m.parameters(recurse=False))]
    outer = [m for m in wide if m in (wide[0], wide[-1]) or isinstance(m, _EMBEDDINGS)]
    others = {parameter for module in outer for parameter in module.parameters(recurse=False)}
    for parameter in network.parameters():
        if parameter.dim() == 2 and parameter not in others:
            setattr(parameter, _HIDDEN, True)


@dataclass(frozen=True, kw_only=True)
class LRSchedule(Kind):
    """The learning rate over the iterations: constant, step, cosine or theorem; for all stages.

    Args:
        warmup: iterations over which the learning rate rises from zero.
    """

    warmup: CountOrNone = 0

    def factor(self, iteration: int, num_iterations: int) -> float:
        """Return the learning rate of an iteration over the optimizer's, without the warm-up."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Step(LRSchedule):
    """The learning rate falls at milestones.

    Args:
        lr_milestones: fractions of the run after which the learning rate falls.
        lr_factor: factor of the learning rate at each milestone.
    """

    lr_milestones: tuple[Fraction, ...] = (0.5, 0.75)
    lr_factor: Positive = 0.1

    def factor(self, iteration: int, num_iterations: int) -> float:
        """Return ``lr_factor`` to the number of milestones that are passed."""
        progress = iteration / num_iterations
        passed = sum(progress >= milestone for milestone in self.lr_milestones)
        return float(self.lr_factor**passed)


@dataclass(frozen=True, kw_only=True)
class Cosine(LRSchedule):
    """The learning rate falls to zero along half a cosine wave."""

    name: str = "cosine"

    def factor(self, iteration: int, num_iterations: int) -> float:
        """Return the height of the half wave."""
        return (1 + math.cos(math.pi * (iteration / num_iterations))) / 2


@dataclass(frozen=True, kw_only=True)
class Theorem(LRSchedule):
    """What the convergence theorem asks for: lr (1 + t / lr_time_scale)^(-lr_power).

    Args:
        lr_time_scale: iterations after which the learning rate has fallen to 2^-lr_power.
        lr_power: how fast the learning rate falls in the end; above 1/2, at most 1.
    """

    lr_time_scale: Positive = 1000.0
    lr_power: Annotated[float, Meta(gt=0.5, le=1)] = 0.6

    def factor(self, iteration: int, num_iterations: int) -> float:
        """Return the polynomial decay."""
        decay = PolynomialDecay(lr=1.0, time_scale=self.lr_time_scale, power=self.lr_power)
        return decay(iteration)
