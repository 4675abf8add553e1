"""Character-level language modelling from one UTF-8 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from delaygrad.data.dataset import Indices
from delaygrad.errors import DataError

_FILE_NAME = "input.txt"


class TextDataset:
    """Windows of ``context_length`` characters that do not overlap, and their next characters.

    A remainder too short for a window is left out::

        characters   T o   b e ,   o r   n o t       context_length 4
        inputs       [T o _ b] [e , _ o] [r _ n o]
        targets      [o _ b e] [, _ o r] [_ n o t]
    """

    def __init__(self, characters: Tensor, context_length: int) -> None:
        self._characters = characters
        self._offsets = torch.arange(context_length)
        self._context_length = context_length

    @property
    def num_samples(self) -> int:
        """Windows in this split."""
        return (len(self._characters) - 1) // self._context_length

    def inputs(self, indices: Indices, rng: np.random.Generator | None = None) -> Tensor:
        """Read windows: (B, T) int64 character numbers; text is not augmented."""
        return self._windows(indices, shift=0)

    def targets(self, indices: Indices) -> Tensor:
        """Read the same windows, one character later."""
        return self._windows(indices, shift=1)

    def contents(self) -> list[npt.NDArray[Any]]:
        """Return the numbers of the characters."""
        return [self._characters.numpy()]

    def _windows(self, indices: Indices, shift: int) -> Tensor:
        starts = torch.from_numpy(indices) * self._context_length + shift
        return self._characters[starts[:, None] + self._offsets]


def text_splits(path: Path, context_length: int) -> tuple[TextDataset, TextDataset, int]:
    """Read a text: its first 90 % to train on, the rest to test on.

    Returns (train, test, vocabulary size); the vocabulary is the file's distinct characters,
    sorted. A DataError says that there is no such file, it is not UTF-8, or it is too short.
    """
    if context_length < 1:
        raise DataError(f"context_length must be at least 1 (context_length: {context_length})")
    characters, vocabulary_size = _read_characters(path / _FILE_NAME if path.is_dir() else path)
    num_train = len(characters) * 9 // 10
    train = TextDataset(characters[:num_train], context_length)
    test = TextDataset(characters[num_train:], context_length)
    if min(train.num_samples, test.num_samples) < 1:
        raise DataError(
            f"text is too short for its windows (characters: {len(characters)}, of them for the "
            f"test: {len(characters) - num_train}, context_length: {context_length}); lower "
            f"context_length or give a longer text"
        )
    return train, test, vocabulary_size


def _read_characters(file: Path) -> tuple[Tensor, int]:
    """Number every character by its place among the distinct ones."""
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(
            f"cannot read the text ({file}: {error.strerror}); let data_dir name a UTF-8 file, or "
            f"a folder with {_FILE_NAME}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"text is not UTF-8 ({file}: byte {error.start} is {error.object[error.start]:#04x}); "
            f"convert it to UTF-8"
        ) from error
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    vocabulary, numbers = np.unique(code_points, return_inverse=True)
    return torch.from_numpy(numbers.astype(np.int64)), len(vocabulary)
