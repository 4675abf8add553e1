from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from delaygrad.data import load
from delaygrad.errors import DataError

TEXT = "héllo wörld, this is a test.\r\n" * 10  # 300 characters, more bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "input.txt").write_bytes(TEXT.encode())
    return tmp_path


@pytest.mark.parametrize("inside", ["", "input.txt"])
def test_windows_tile_the_text_and_targets_are_the_next_characters(
    folder: Path, inside: str
) -> None:
    source = load("text", data_dir=folder / inside, context_length=8)
    vocabulary = sorted(set(TEXT))
    assert source.num_classes == len(vocabulary) and source.sample_shape == (8,)
    assert source.validation is None

    for split, text in ((source.train, TEXT[:270]), (source.test, TEXT[270:])):
        assert split.num_samples == (len(text) - 1) // 8
        every = np.arange(split.num_samples)
        covered = 8 * split.num_samples
        for shift, windows in ((0, split.inputs(every)), (1, split.targets(every))):
            assert windows.shape == (split.num_samples, 8) and str(windows.dtype) == "torch.int64"
            read = "".join(vocabulary[number] for number in windows.flatten().tolist())
            assert read == text[shift : covered + shift]


def test_text_of_one_window_per_split_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("abcdefghij" * 5)
    assert load("text", data_dir=file, context_length=4).test.num_samples == 1
    with pytest.raises(DataError, match=r"too short .*characters: 50, of them for the test: 5, "):
        load("text", data_dir=file, context_length=5)


def test_empty_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "input.txt").touch()
    with pytest.raises(DataError, match="too short"):
        load("text", data_dir=tmp_path)


def test_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the text \(.*input.txt: No such file"):
        load("text", data_dir=tmp_path)


def test_other_encoding_is_named_with_its_byte(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_bytes("abcé".encode("latin1"))
    with pytest.raises(DataError, match="not UTF-8 .*byte 3 is 0xe9.*; convert it to UTF-8"):
        load("text", data_dir=tmp_path)


def test_context_length_below_one_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="context_length must be at least 1"):
        load("text", data_dir=folder, context_length=0)
