"""What a source of data is: splits that give inputs and targets by index."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from delaygrad.data.order import Purpose, permutation
from delaygrad.errors import DataError

Indices = npt.NDArray[np.int64]


class Dataset(Protocol):
    """One split of a data source.

    Inputs and targets are separate calls on purpose: in a pipeline only the first rank reads
    inputs and only the last one targets.
    """

    @property
    def num_samples(self) -> int:
        """Samples in this split."""
        ...

    def inputs(self, indices: Indices, rng: np.random.Generator | None = None) -> Tensor:
        """Read the network's inputs.

        Args:
            indices: (B,) int64, each from 0 to num_samples − 1.
            rng: given, the training augmentation (if this split has one) is drawn from it; None
                reads the samples as they are.
        Returns:
            (B, *sample_shape), float32 images or int64 characters, on the CPU.
        """
        ...

    def targets(self, indices: Indices) -> Tensor:
        """Read the targets of the same samples.

        Args:
            indices: (B,) int64, each from 0 to num_samples − 1.
        Returns:
            (B,) int64 classes, or (B, T) int64 next characters, on the CPU.
        """
        ...

    def contents(self) -> list[npt.NDArray[Any]]:
        """Return the arrays that all inputs and targets are made of."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A loaded data set.

    Args:
        name: as given to ``load``.
        train: what the network learns from.
        validation: samples held out of ``train`` for choosing a recipe; None if ``holdout`` is 0.
        test: the final examination; never part of ``train`` or ``validation``.
        sample_shape: shape of one input, without the batch.
        num_classes: classes, or the vocabulary size for text.
    """

    name: str
    train: Dataset
    validation: Dataset | None
    test: Dataset
    sample_shape: tuple[int, ...]
    num_classes: int

    @cached_property
    def sha256(self) -> str:
        """Digest of all samples, as they are in memory."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):  # validation is made of what train is made of
            for array in split.contents():
                digest.update(f"{array.dtype} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class InMemory:
    """Samples and their classes as two tensors; there is no augmentation."""

    def __init__(self, samples: Tensor, labels: Tensor) -> None:
        self._samples, self._labels = samples, labels

    @property
    def num_samples(self) -> int:
        """Samples in this split."""
        return len(self._labels)

    def inputs(self, indices: Indices, rng: np.random.Generator | None = None) -> Tensor:
        """Return the samples; ``rng`` has no effect."""
        return self._samples[torch.from_numpy(indices)]

    def targets(self, indices: Indices) -> Tensor:
        """Return the classes."""
        return self._labels[torch.from_numpy(indices)]

    def contents(self) -> list[npt.NDArray[Any]]:
        """Return samples and classes."""
        return [self._samples.numpy(), self._labels.numpy()]


class _Subset:
    """Some samples of another dataset, under indices of its own."""

    def __init__(self, base: Dataset, members: Indices, *, augment: bool) -> None:
        self._base = base
        self._members = members
        self._augment = augment

    @property
    def num_samples(self) -> int:
        return len(self._members)

    def inputs(self, indices: Indices, rng: np.random.Generator | None = None) -> Tensor:
        return self._base.inputs(self._members[indices], rng if self._augment else None)

    def targets(self, indices: Indices) -> Tensor:
        return self._base.targets(self._members[indices])

    def contents(self) -> list[npt.NDArray[Any]]:
        return [self._members, *self._base.contents()]


def hold_out(train: Dataset, holdout: int) -> tuple[Dataset, Dataset | None]:
    """Part the last ``holdout`` samples of a fixed permutation off the training split.

    The permutation depends on the number of samples only, not on the run's seed: recipes tuned in
    different runs are compared on the same samples.

    Args:
        train: the whole training split.
        holdout: samples for validation, 0 ≤ holdout < train.num_samples.
    Returns:
        (train, validation); validation is None if holdout is 0, and is never augmented.
    Raises:
        DataError: holdout is out of range.
    """
    if not 0 <= holdout < train.num_samples:
        raise DataError(
            f"holdout does not fit the training split (holdout: {holdout}, training samples: "
            f"{train.num_samples}); use 0 to {train.num_samples - 1}"
        )
    if holdout == 0:
        return train, None
    members = permutation(train.num_samples, key=(0, 0), purpose=Purpose.HOLDOUT)
    kept, held = np.split(members, [train.num_samples - holdout])
    return _Subset(train, kept, augment=True), _Subset(train, held, augment=False)
