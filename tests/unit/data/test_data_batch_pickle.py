from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from delaygrad.data.batch_pickle import read_batch_pickle
from delaygrad.errors import DataError

PIXELS = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)


class RunsCommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("is_fortran", [False, True])
def test_python_2_batch_is_read(python2_batch: Callable[..., bytes], is_fortran: bool) -> None:
    content = python2_batch(PIXELS, [3, 9], is_fortran=is_fortran)
    pixels, labels = read_batch_pickle(content, b"labels", source="batch")
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, PIXELS)
    assert labels.dtype == np.int64 and labels.tolist() == [3, 9]


def test_batch_of_the_fixture_is_one_that_numpy_itself_reads(
    python2_batch: Callable[..., bytes],
) -> None:
    content = python2_batch(PIXELS, [3, 9]).replace(b"numpy.core", b"numpy._core")
    batch = pickle.loads(content, encoding="bytes")
    assert np.array_equal(batch[b"data"], PIXELS) and batch[b"labels"] == [3, 9]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "ran"
    malicious = pickle.dumps([RunsCommand(f"touch {witness}")], protocol=protocol)
    with pytest.raises(DataError, match=r"evil: UnpicklingError: it asks for \w+.system"):
        read_batch_pickle(malicious, b"labels", source="evil")
    assert not witness.exists()
    pickle.loads(malicious)  # the same bytes do harm where nothing guards them
    assert witness.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"builtins\neval",
        b"__builtin__\neval",
        b"numpy\nload",
        b"numpy\nndarray.tofile",
        b"numpy.core.multiarray\nscalar",
        b"numpy._core.multiarray\n_reconstruct",
        b"copyreg\n_reconstructor",
        b"_codecs\nencode",
        b"delaygrad.data.batch_pickle\n_STAND_INS",
    ],
)
def test_any_name_beyond_the_three_is_refused(name: bytes) -> None:
    with pytest.raises(DataError, match="it asks for"):
        read_batch_pickle(b"\x80\x02c" + name + b"\n.", b"labels", source="evil")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x02}.",  # an empty batch
        b"\x80\x02K\x01.",  # a number
        b"\x80\x02cnumpy\nndarray\n)R.",  # a call of the stand-in that is no callable
        b"\x80\x02cnumpy\ndtype\n}b.",  # a state for the stand-in's class itself
        b"\x80\x02Vposix.system\nQ.",  # a persistent id
    ],
)
def test_what_is_no_batch_gives_one_clear_error(content: bytes) -> None:
    with pytest.raises(DataError, match="(?s)not a pickled CIFAR batch .*; nothing of it was run"):
        read_batch_pickle(content, b"labels", source="broken")


def test_batch_of_another_type_or_key_is_refused(python2_batch: Callable[..., bytes]) -> None:
    with pytest.raises(DataError, match="array is not uint8"):
        read_batch_pickle(python2_batch(PIXELS, [1, 2], code=b"O8"), b"labels", source="odd")
    with pytest.raises(DataError, match="fine_labels"):
        read_batch_pickle(python2_batch(PIXELS, [1, 2]), b"fine_labels", source="odd")
