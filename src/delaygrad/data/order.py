"""Which samples form which mini-batch: a function of the seed and the iteration alone.

No sampler holds a state. Every rank computes the same indices without talking to the others, and a
resumed run needs nothing but its iteration number.

All random numbers come from Philox, a counter-based generator: (key, counter) -> bits. The key is
(seed, epoch) or (seed, iteration); the highest counter word is the purpose, so that no two purposes
ever share a bit, even where epoch and iteration are equal.

References:
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from delaygrad.errors import DataError

_KEY_LIMIT = 2**64


class Purpose(IntEnum):
    """What a random stream is for; the numbers are part of the data order and must not change."""

    EPOCH_ORDER = 0
    AUGMENTATION = 1
    HOLDOUT = 2
    DIGITS_SPLIT = 3


def iterations_per_epoch(num_samples: int, batch_size: int) -> int:
    """Count the mini-batches of one epoch; a short last batch counts and stays short.

    Args:
        num_samples: samples in the training split, ≥ 1.
        batch_size: samples per mini-batch, ≥ 1.
    Returns:
        ceil(num_samples / batch_size).
    Raises:
        DataError: an argument is below 1.
    Example:
        >>> iterations_per_epoch(50_000, 128)
        391

    References:
        Differs from slowbull/DDG, which fills the last batch up with copies of its first samples.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise DataError(f"{name} must be at least 1 ({name}: {value}); raise it")
    return -(-num_samples // batch_size)


def batch_indices(
    *, seed: int, iteration: int, num_samples: int, batch_size: int
) -> npt.NDArray[np.int64]:
    """Give the sample indices of one mini-batch.

    Epoch e holds the iterations e·I … (e+1)·I − 1 with I = ``iterations_per_epoch``, and visits
    every sample exactly once, in the order of the permutation drawn from (seed, e).

    Args:
        seed: the run's seed, 0 ≤ seed < 2**64.
        iteration: counts mini-batches from the start of the run, from 0.
        num_samples: samples in the training split, ≥ 1.
        batch_size: samples per mini-batch, ≥ 1; the last one of an epoch may be shorter.
    Returns:
        (B,) int64, a copy that the caller may change.
    Raises:
        DataError: an argument is out of range.
    Example:
        >>> order = {"seed": 1, "num_samples": 5, "batch_size": 2}
        >>> epoch = [batch_indices(iteration=iteration, **order) for iteration in range(3)]
        >>> [len(batch) for batch in epoch]
        [2, 2, 1]
        >>> sorted(np.concatenate(epoch).tolist())
        [0, 1, 2, 3, 4]
    """
    iterations = iterations_per_epoch(num_samples, batch_size)
    _check_key(seed=seed, iteration=iteration)
    epoch, position = divmod(iteration, iterations)
    order = _epoch_order(seed, epoch, num_samples)
    return order[position * batch_size : (position + 1) * batch_size].copy()


def augmentation_rng(*, seed: int, iteration: int) -> np.random.Generator:
    """Open the random stream of one iteration's augmentation.

    Args:
        seed: the run's seed, 0 ≤ seed < 2**64.
        iteration: counts mini-batches from the start of the run, from 0.
    Returns:
        A fresh generator; it shares no bits with the data order or with another iteration.
    Raises:
        DataError: an argument is out of range.
    Example:
        >>> a, b = (augmentation_rng(seed=1, iteration=7) for _ in range(2))
        >>> bool(a.random() == b.random())
        True
    """
    _check_key(seed=seed, iteration=iteration)
    return np.random.Generator(_philox((seed, iteration), Purpose.AUGMENTATION))


def permutation(
    num_samples: int, *, key: tuple[int, int], purpose: Purpose
) -> npt.NDArray[np.int64]:
    """Permute 0 … num_samples − 1.

    Sorting raw bits, not ``Generator.permutation``: NumPy promises to keep the bits of a bit
    generator from version to version, but not what a Generator makes of them (NEP 19).
    """
    bits = _philox(key, purpose).random_raw(num_samples)
    return np.argsort(bits, kind="stable").astype(np.int64)


# 4: the current epoch, the next one, and room for a second split read beside the training one.
@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, num_samples: int) -> npt.NDArray[np.int64]:
    order = permutation(num_samples, key=(seed, epoch), purpose=Purpose.EPOCH_ORDER)
    order.setflags(write=False)
    return order


def _philox(key: tuple[int, int], purpose: Purpose) -> np.random.Philox:
    return np.random.Philox(
        key=np.array(key, dtype=np.uint64),
        counter=np.array([0, 0, 0, int(purpose)], dtype=np.uint64),
    )


def _check_key(*, seed: int, iteration: int) -> None:
    for name, value in (("seed", seed), ("iteration", iteration)):
        if not 0 <= value < _KEY_LIMIT:
            raise DataError(f"{name} is out of range ({name}: {value}); use 0 to 2**64 - 1")
