"""The networks and the data of the depth study: sixteen blocks that a laptop can train."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delaygrad.data import DataSource, load
from delaygrad.data.dataset import Dataset, InMemory
from delaygrad.data.text import TextDataset

_DATA = Path("data")
_BLOCKS, _WIDTH = 16, 64
_HELD_OUT = 5008  # leaves whole batches of 64


class ResidualBlock(nn.Module):
    """x + W₂ relu(W₁ norm(x)); no BatchNorm, so micro-batches change nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width) to (B, width)."""
        out: Tensor = x + self.outer(F.relu(self.inner(self.norm(x))))
        return out


def residual_mlp() -> nn.Sequential:
    """Build sixteen residual blocks between a linear stem and a classifier of ten classes."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, _WIDTH))
    for number in range(1, _BLOCKS + 1):
        layers[f"block{number}"] = ResidualBlock(_WIDTH)
    layers["head"] = nn.Sequential(nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 10))
    return nn.Sequential(layers)


def small_images() -> DataSource:
    """Load CIFAR-10 at 16x16 pixels, in float32; 5,008 training images are for validation."""
    source = load("cifar10", data_dir=_DATA, holdout=_HELD_OUT, augment=False)
    assert source.validation is not None
    return replace(
        source,
        name="cifar10-16x16",
        train=_smaller(source.train),
        validation=_smaller(source.validation),
        test=_smaller(source.test),
        sample_shape=(3, 16, 16),
    )


def _smaller(split: Dataset) -> InMemory:
    numbers = torch.arange(split.num_samples).numpy()
    return InMemory(F.avg_pool2d(split.inputs(numbers), 2), split.targets(numbers))


def short_text() -> DataSource:
    """Load the first 280,000 characters of the text, in windows of 32.

    249,857 characters (7,808 windows, whole batches of 32) are to train on, 15,000 for validation,
    15,000 to test on.
    """
    source = load("text", data_dir=_DATA / "tinyshakespeare", context_length=32)
    (characters,) = source.train.contents()
    train, validation, test = (
        TextDataset(torch.from_numpy(characters[start:end]), 32)
        for start, end in ((0, 249_857), (250_000, 265_000), (265_000, 280_000))
    )
    return replace(source, train=train, validation=validation, test=test)
