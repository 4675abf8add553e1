"""CIFAR-10 and CIFAR-100 as datasets: bytes in memory, normalised batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from delaygrad.data.augment import crop_and_flip
from delaygrad.data.cifar_files import read_cifar
from delaygrad.data.cifar_official import CifarSpec
from delaygrad.data.dataset import Indices, InMemory


class CifarDataset(InMemory):
    """Colour images of 32x32 pixels; uint8 in memory, a quarter of what float32 would take."""

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: bool,
    ) -> None:
        super().__init__(torch.from_numpy(images), torch.from_numpy(labels))
        self._images = images
        self._mean = torch.tensor(mean).view(-1, 1, 1)
        self._std = torch.tensor(std).view(-1, 1, 1)
        self._augment = augment

    def inputs(self, indices: Indices, rng: np.random.Generator | None = None) -> Tensor:
        """Read (B, 3, 32, 32) float32, (pixel / 255 − mean) / std per channel.

        If an rng is given, and the split augments, crops and flips are drawn from it.
        """
        images = self._images[indices]
        if self._augment and rng is not None:
            images = crop_and_flip(images, rng)
        scaled = torch.from_numpy(images).to(torch.float32).div_(255)
        return scaled.sub_(self._mean).div_(self._std)


def cifar_splits(
    spec: CifarSpec, data_dir: Path, *, augment: bool
) -> tuple[CifarDataset, CifarDataset]:
    """Load the official training and test splits; only the training split augments."""
    train, test = read_cifar(spec, data_dir)
    return (
        CifarDataset(*train, mean=spec.mean, std=spec.std, augment=augment),
        CifarDataset(*test, mean=spec.mean, std=spec.std, augment=False),
    )
