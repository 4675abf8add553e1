"""Files as Python 2 wrote them: the pickles of CIFAR's Python version."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

Python2Batch = Callable[..., bytes]


def _string(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING: a Python 2 str


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)  # BININT


def _array(array: np.ndarray, code: bytes, is_fortran: bool) -> bytes:
    """An array in a pickle: a call of _reconstruct(ndarray, (0,), 'b'), then its state."""
    raw = array.tobytes(order="F" if is_fortran else "C")
    return b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n",
            b"(" + _integer(0) + b"t" + _string(b"b") + b"\x87R",
            b"(" + _integer(1) + b"(" + b"".join(map(_integer, array.shape)) + b"t",
            b"cnumpy\ndtype\n(" + _string(code) + _integer(0) + _integer(1) + b"tR",
            b"(" + _integer(3) + _string(b"|") + b"NNN" + _integer(-1) + _integer(-1),
            _integer(0) + b"tb",
            (b"\x88" if is_fortran else b"\x89") + _string(raw) + b"tb",
        ]
    )


def _batch(
    pixels: np.ndarray,
    labels: list[int],
    *,
    label_key: bytes = b"labels",
    code: bytes = b"u1",
    is_fortran: bool = False,
) -> bytes:
    items = [
        _string(b"batch_label") + _string(b"a batch"),
        _string(label_key) + b"](" + b"".join(map(_integer, labels)) + b"e",
        _string(b"data") + _array(pixels, code, is_fortran),
    ]
    return b"\x80\x02}(" + b"".join(items) + b"u."


@pytest.fixture
def python2_batch() -> Python2Batch:
    return _batch
