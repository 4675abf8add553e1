"""The CIFAR augmentation, for a whole batch at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
