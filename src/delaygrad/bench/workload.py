"""What the contestants train: a network, a batch, a loss and an optimizer, the same for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delaygrad.bench.config import ContestConfig
from delaygrad.bench.sleeping import sleeper
from delaygrad.data import batch_indices
from delaygrad.models import gpt, mlp, resnet, to_channels_last
from delaygrad.partition import split
from delaygrad.training.choices import OwnData, OwnModel
from delaygrad.training.evaluation import cross_entropy

_SEED = 0
_CHARACTERS = 65
SLEEP_FORWARD_S, SLEEP_BACKWARD_S = 0.03, 0.06


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One thing to train; every rank and contestant makes the same network and batch of it.

    Attributes:
        description: network, batch and optimizer, in words.
        make_model: a new network, not yet seeded.
        make_batch: a new batch, not yet seeded.
        loss_fn: the mean over the batch.
        make_optimizer: over some of the network's parameters.
        known_cuts: number of stages -> the cuts that are balanced by construction; None: measure.
        device: where it is trained.
    """

    description: str
    make_model: Callable[[], nn.Module]
    make_batch: Callable[[], tuple[Tensor, Tensor]]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    known_cuts: Callable[[int], list[str]] | None = None
    device: torch.device = torch.device("cpu")

    def model(self) -> nn.Module:
        """Build the network, with the same parameters each time."""
        torch.manual_seed(_SEED)
        return self.make_model().to(self.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Draw inputs and targets, the same each time."""
        torch.manual_seed(_SEED + 1)
        inputs, targets = self.make_batch()
        return inputs.to(self.device), targets.to(self.device)

    def stages(self, num_stages: int, cuts: list[str] | None = None) -> list[nn.Module]:
        """Cut the network; without cuts where stages take equal time."""
        return split(
            self.model(),
            num_stages,
            sample_inputs=self.batch()[0],
            cuts=cuts,
            make_optimizer=self.make_optimizer,
        )


def load_workload(config: ContestConfig) -> Workload:
    """Make the workload that a contest asks for; a smaller one of its kind for a smoke test."""
    small = config.smoke
    if config.model:
        return _own(config.model, config.data, config.batch_size or 32)
    if config.workload == "resnet8":
        return images(8, batch_size=16 if small else 128)
    if config.workload == "resnet56":
        return images(8 if small else 56, batch_size=16 if small else 32)
    if config.workload == "resnet110":
        return images(14 if small else 110, batch_size=16 if small else 128)
    if config.workload == "gpt25m":
        return _characters(small)
    if config.workload == "mlp":
        return _perceptron(small)
    return _sleep(config)


def _own(model: str, data: str, batch_size: int) -> Workload:
    network, source = OwnModel(name=model, channels_last=False), OwnData(name=data).load()

    def batch() -> tuple[Tensor, Tensor]:
        indices = batch_indices(
            seed=_SEED, iteration=0, num_samples=source.train.num_samples, batch_size=batch_size
        )
        return source.train.inputs(indices), source.train.targets(indices)

    return Workload(
        description=f"{model}, {batch_size} samples of {data}, SGD with momentum",
        make_model=lambda: network.build(source),
        make_batch=batch,
        loss_fn=cross_entropy,
        make_optimizer=_sgd,
    )


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    # A small rate: one batch is trained on for thousands of iterations, also with delays.
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4)


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-5, fused=True)


def images(depth: int, *, batch_size: int) -> Workload:
    """A ResNet on images of 3x32x32."""

    def batch() -> tuple[Tensor, Tensor]:
        inputs = torch.randn(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
        return inputs, torch.randint(10, (batch_size,))

    return Workload(
        description=f"ResNet-{depth}, {batch_size} images of 3x32x32, channels_last, "
        "SGD with momentum",
        make_model=lambda: to_channels_last(resnet(depth, num_classes=10)),
        make_batch=batch,
        loss_fn=F.cross_entropy,
        make_optimizer=_sgd,
    )


def _characters(small: bool) -> Workload:
    layers, width, heads = (4, 32, 2) if small else (8, 512, 8)
    batch_size, length = (16, 16) if small else (8, 128)

    def model() -> nn.Sequential:
        return gpt(
            vocabulary_size=_CHARACTERS,
            context_length=length,
            width=width,
            num_layers=layers,
            num_heads=heads,
        )

    def batch() -> tuple[Tensor, Tensor]:
        text = torch.randint(_CHARACTERS, (batch_size, length + 1))
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    return Workload(
        description=f"GPT, {layers} blocks of width {width}, {heads} heads, {_CHARACTERS} "
        f"characters, {batch_size} x {length} tokens, AdamW (fused)",
        make_model=model,
        make_batch=batch,
        loss_fn=cross_entropy,
        make_optimizer=_adamw,
    )


def _perceptron(small: bool) -> Workload:
    depth, width, batch_size = (8, 16, 16) if small else (64, 128, 128)

    def model() -> nn.Sequential:
        return mlp(sample_shape=(784,), num_classes=10, width=width, depth=depth)

    def batch() -> tuple[Tensor, Tensor]:
        return torch.randn(batch_size, 784), torch.randint(10, (batch_size,))

    return Workload(
        description=f"MLP of {depth} linear layers of width {width}, {batch_size} samples of 784, "
        "SGD with momentum",
        make_model=model,
        make_batch=batch,
        loss_fn=F.cross_entropy,
        make_optimizer=_sgd,
    )


def _sleep(config: ContestConfig) -> Workload:
    stages, batch_size = config.stages, 64  # many, for many micro-batches
    shrink = 0.1 if config.smoke else 1.0
    alike = config.forward_s or SLEEP_FORWARD_S, config.backward_s or SLEEP_BACKWARD_S
    own = list(zip(config.stage_forward_s, config.stage_backward_s, strict=True))
    seconds = [(shrink * f, shrink * b) for f, b in own or [alike] * stages]
    elements = max(1, (config.boundary_bytes or 1024) // (4 * batch_size))

    def model() -> nn.Sequential:
        # Two layers a stage: interleaved schedules cut each stage in two.
        halves = [(f / 2, b / 2) for f, b in seconds for _ in range(2)]
        return sleeper(halves, batch_size=batch_size)

    def cuts(num_stages: int) -> list[str]:
        return [f"nap{2 * stages * stage // num_stages}" for stage in range(1, num_stages)]

    return Workload(
        description=f"stages that sleep {_milliseconds(f for f, _ in seconds)} ms forward and "
        f"{_milliseconds(b for _, b in seconds)} ms backward for a batch of {batch_size}, "
        f"boundary of {4 * batch_size * elements} bytes, SGD",
        make_model=model,
        make_batch=lambda: (torch.randn(batch_size, elements), torch.zeros(batch_size, elements)),
        loss_fn=F.mse_loss,
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        known_cuts=cuts,
    )


def _milliseconds(seconds: Iterable[float]) -> str:
    """List the times, or say once what all have.

    Example:
        >>> _milliseconds([0.03, 0.03]), _milliseconds([0.01, 0.02])
        ('30', '10, 20')
    """
    shown = [f"{1e3 * s:.4g}" for s in seconds]
    return ", ".join(shown if len(set(shown)) > 1 else shown[:1])
