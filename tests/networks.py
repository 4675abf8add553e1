"""Small networks, as lists of blocks that any number of stages can share out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

CLASSES = 5


def mlp(num_blocks: int = 8) -> list[nn.Module]:
    blocks = [nn.Sequential(nn.Linear(6, 7), nn.Tanh())]
    blocks += [nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(num_blocks - 2)]
    return [*blocks, nn.Linear(7, CLASSES)]


def batch_norm_mlp(num_blocks: int = 8) -> list[nn.Module]:
    return [
        nn.Sequential(block, nn.BatchNorm1d(7)) if index < num_blocks - 1 else block
        for index, block in enumerate(mlp(num_blocks))
    ]


def dropout_mlp(num_blocks: int = 8) -> list[nn.Module]:
    return [
        nn.Sequential(nn.Dropout(0.2), block, nn.Dropout(0.1)) if index < num_blocks - 1 else block
        for index, block in enumerate(mlp(num_blocks))
    ]


def in_place_convolutions(num_blocks: int = 8) -> list[nn.Module]:
    """In-place ReLU in the middle, as the first layer and as the last layer of a block."""
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    ]
    for index in range(num_blocks - 2):
        convolution = nn.Conv2d(4, 4, 3, padding=1)
        layers = (
            [nn.ReLU(inplace=True), convolution, nn.ReLU(inplace=True)]
            if index % 2
            else [convolution, nn.BatchNorm2d(4)]
        )
        blocks.append(nn.Sequential(*layers))
    return [*blocks, nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))]


NETWORKS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "batch norm": (batch_norm_mlp, (6,)),
    "in-place convolutions": (in_place_convolutions, (2, 4, 4)),
    "dropout": (dropout_mlp, (6,)),
}
"""Makers of blocks, with the shape of one input."""

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "nesterov": lambda params: torch.optim.SGD(
        params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
}


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def parameters(stages: Iterable[nn.Module]) -> list[Tensor]:
    """Copies of the values of all parameters."""
    return [p.detach().clone() for stage in stages for p in stage.parameters()]


def states(stages: Iterable[nn.Module]) -> list[dict[str, Tensor]]:
    """Parameters and buffers of each stage by name, not copied."""
    return [dict(stage.state_dict()) for stage in stages]


def into_stages(blocks: Sequence[nn.Module], num_stages: int) -> list[nn.Module]:
    """Share out blocks to stages as evenly as possible, in order."""
    bounds = [len(blocks) * k // num_stages for k in range(num_stages + 1)]
    return [nn.Sequential(*blocks[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]


def batches(
    num_batches: int, shape: tuple[int, ...], *, seed: int = 5, sizes: Sequence[int] = (4,)
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random inputs and classes; ``sizes`` are used in turn."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(num_batches):
        size = sizes[index % len(sizes)]
        inputs = torch.randn(size, *shape, generator=generator, dtype=torch.get_default_dtype())
        yield inputs, torch.randint(CLASSES, (size,), generator=generator)
