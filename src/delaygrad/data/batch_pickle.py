"""Read the pickled batches of CIFAR's Python version without being able to run code.

A pickle is a small program: it may name any callable and call it. This reader knows the three
names that the official Python 2 files use and puts an inert stand-in of ours under each; NumPy
itself is never called by the file. Any other name is refused before it is looked up.

References:
    https://docs.python.org/3/library/pickle.html, "Restricting Globals".
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from delaygrad.errors import DataError


class _PickledDtype:
    """Stands in for ``numpy.dtype``; remembers the type code."""

    def __init__(self, code: Any, align: Any = 0, copy: Any = 1) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields mean nothing for single bytes."""


class _PickledArray:
    """Stands in for ``numpy.core.multiarray._reconstruct``; remembers the array's state."""

    def __init__(self, subtype: Any, shape: Any, code: Any) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def to_numpy(self) -> npt.NDArray[np.uint8]:
        """Build the array; any state but that of a two-dimensional uint8 array raises."""
        _version, (rows, columns), dtype, is_fortran, raw = self._state
        if type(dtype) is not _PickledDtype or dtype.code != b"u1" or type(raw) is not bytes:
            raise ValueError("array is not uint8")
        flat = np.frombuffer(raw, dtype=np.uint8)
        return flat.reshape((rows, columns), order="F" if is_fortran else "C")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): object(),  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _PickledDtype,
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _STAND_INS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from None


def read_batch_pickle(
    content: bytes, label_key: bytes, *, source: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read one pickled batch: ``{"data": (N, 3072) uint8, label_key: N integers, ...}``.

    ``source`` is the file's name, for messages. Anything that a CIFAR batch does not need is a
    DataError.
    """
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"].to_numpy(), batch[label_key]
        if type(labels) is not list or any(type(label) is not int for label in labels):
            raise ValueError("labels are not a list of integers")
        return pixels, np.array(labels, dtype=np.int64)
    # Whatever a hostile or broken pickle makes fail, inside pickle or above, means the same thing.
    except Exception as error:
        raise DataError(
            f"not a pickled CIFAR batch ({source}: {type(error).__name__}: {error}); nothing of it "
            f"was run; replace it with the official file"
        ) from error
