"""CIFAR-10 and CIFAR-100 as datasets: bytes in memory, normalised batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from delaygrad.data.cifar_files import read_cifar
from delaygrad.data.cifar_official import CifarSpec
from delaygrad.data.dataset import Indices, InMemory

_PADDING = 4


def crop_and_flip(images: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Pad by 4 black pixels, crop at random to the old size, mirror half of the images.

    Padding comes before normalisation, on raw pixels: the border is black, not the mean colour.
    The same in ``torchvision``: ``RandomCrop(32, padding=4)``, ``RandomHorizontalFlip()``,
    ``ToTensor()``, ``Normalize(...)``.

    Args:
        images: (B, C, H, W) uint8; not changed.
        rng: the only source of randomness: offsets, then flips.
    Returns:
        (B, C, H, W) uint8, new.
    Example:
        >>> black = np.zeros((2, 3, 32, 32), dtype=np.uint8)
        >>> crop_and_flip(black, np.random.default_rng(0)).shape
        (2, 3, 32, 32)

    References:
        He et al., CVPR 2016, arXiv:1512.03385, Section 4.2. Differs: none.
    """
    batch, channels, height, width = images.shape
    rows, columns = rng.integers(0, 2 * _PADDING + 1, size=(2, batch))
    flipped = rng.integers(0, 2, size=batch).astype(bool)

    padded = np.zeros(
        (batch, channels, height + 2 * _PADDING, width + 2 * _PADDING), dtype=np.uint8
    )
    padded[:, :, _PADDING:-_PADDING, _PADDING:-_PADDING] = images
    # A view of every possible crop, (B, C, 9, 9, H, W); indexing it copies one crop per image.
    crops = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    cropped: npt.NDArray[np.uint8] = crops[np.arange(batch), :, rows, columns]
    cropped[flipped] = cropped[flipped, :, :, ::-1]
    return cropped


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
