"""Small files in every official layout, read by the same code with tables of their own."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from delaygrad.data import load
from delaygrad.data.cifar import CifarDataset, cifar_splits
from delaygrad.data.cifar_files import read_cifar
from delaygrad.data.cifar_official import CIFAR10, CIFAR100, CifarLayout, CifarSpec
from delaygrad.errors import DataError

Contents = dict[str, bytes]
SPECS = pytest.mark.parametrize("official", [CIFAR10, CIFAR100], ids=lambda spec: spec.name)
VERSIONS = pytest.mark.parametrize("version", ["binary", "python"])


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def small(official: CifarSpec, python2_batch: Callable[..., bytes]) -> tuple[CifarSpec, Contents]:
    """Two records of each class per file, and the spec that expects just these."""
    contents: Contents = {}
    layouts = {}
    records = 2 * official.num_classes
    for version in ("binary", "python"):
        layout: CifarLayout = getattr(official, version)
        files = []
        for number, file in enumerate(layout.files):
            pixels = np.random.default_rng(number).integers(0, 256, (records, 3072), np.uint8)
            labels = np.random.default_rng(number).permutation(np.arange(records) // 2)
            if version == "python":
                content = python2_batch(pixels, labels.tolist(), label_key=official.label_key)
            else:
                columns = [labels // 5, labels][-len(official.label_ranges) :]
                content = np.column_stack([*columns, pixels]).astype(np.uint8).tobytes()
            contents[file.name] = content
            digest = md5(content) if file.md5 else None
            files.append(replace(file, num_records=records, md5=digest))
        layouts[version] = replace(layout, train=tuple(files[:-1]), test=files[-1])
    return replace(official, **layouts), contents


def write(folder: Path, layout: CifarLayout, contents: Contents) -> None:
    folder.mkdir(exist_ok=True)
    for file in layout.files:
        (folder / file.name).write_bytes(contents[file.name])


def check(spec: CifarSpec, data_dir: Path) -> None:
    """What is read is what ``small`` drew, in official order."""
    train, test = read_cifar(spec, data_dir)
    records = 2 * spec.num_classes
    images = np.concatenate([train[0], test[0]])
    labels = np.concatenate([train[1], test[1]])
    numbers = range(len(spec.binary.files))
    for number in numbers:
        part = slice(number * records, (number + 1) * records)
        pixels = np.random.default_rng(number).integers(0, 256, (records, 3072), np.uint8)
        assert np.array_equal(images[part].reshape(records, 3072), pixels)
        expected = np.random.default_rng(number).permutation(np.arange(records) // 2)
        assert np.array_equal(labels[part], expected)
    assert len(test[1]) == records and images.shape[1:] == (3, 32, 32)
    assert images.dtype == np.uint8 and labels.dtype == np.int64


@SPECS
@VERSIONS
@pytest.mark.parametrize("inside", [True, False], ids=["in the subfolder", "in data_dir"])
def test_unpacked_files_are_read(
    tmp_path: Path,
    python2_batch: Callable[..., bytes],
    official: CifarSpec,
    version: str,
    inside: bool,
) -> None:
    spec, contents = small(official, python2_batch)
    layout = getattr(spec, version)
    write(tmp_path / layout.folder if inside else tmp_path, layout, contents)
    check(spec, tmp_path)


@pytest.fixture
def cifar10(
    tmp_path: Path, python2_batch: Callable[..., bytes]
) -> tuple[CifarSpec, Path, Contents]:
    spec, contents = small(CIFAR10, python2_batch)
    write(tmp_path, spec.binary, contents)
    return spec, tmp_path, contents


def test_complete_files_of_the_other_version_make_up_for_missing_ones(
    cifar10: tuple[CifarSpec, Path, Contents],
) -> None:
    spec, folder, contents = cifar10
    (folder / "data_batch_3.bin").unlink()
    write(folder / spec.python.folder, spec.python, contents)
    check(spec, folder)


def test_missing_file_is_named(cifar10: tuple[CifarSpec, Path, Contents]) -> None:
    spec, folder, _ = cifar10
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"missing file \(expected \S+/data_batch_3.bin, .*; put "):
        read_cifar(spec, folder)


def test_folder_without_files_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cifar100 files .*delaygrad download cifar100"):
        load("cifar100", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"data_dir is not a folder \(.*nowhere\)"):
        load("cifar10", data_dir=tmp_path / "nowhere")


def test_wrong_size_is_named_with_both_sizes(cifar10: tuple[CifarSpec, Path, Contents]) -> None:
    spec, folder, _ = cifar10
    path = folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"data_batch_2.bin: expected 61460 bytes, found 61459\); replace it"
    ):
        read_cifar(spec, folder)


@VERSIONS
def test_one_flipped_bit_is_found(
    tmp_path: Path, python2_batch: Callable[..., bytes], version: str
) -> None:
    spec, contents = small(CIFAR10, python2_batch)
    layout = getattr(spec, version)
    write(tmp_path, layout, contents)
    damaged = bytearray(contents[layout.test.name])
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / layout.test.name).write_bytes(damaged)
    with pytest.raises(DataError, match=f"expected md5 {layout.test.md5}, found {md5(damaged)}"):
        read_cifar(spec, tmp_path)


def test_real_tables_refuse_small_files(cifar10: tuple[CifarSpec, Path, Contents]) -> None:
    with pytest.raises(DataError, match="expected 30730000 bytes, found 61460"):
        load("cifar10", data_dir=cifar10[1])


def test_real_tables_hold_an_md5_for_every_file_but_two() -> None:
    layouts = [layout for spec in (CIFAR10, CIFAR100) for layout in (spec.binary, spec.python)]
    files = [file for layout in layouts for file in layout.files]
    assert [file.name for file in files if file.md5 is None] == ["train.bin", "test.bin"]
    digests = [file.md5 for file in files if file.md5] + [layout.archive.md5 for layout in layouts]
    assert len(set(digests)) == len(digests) == 18
    assert all(len(digest) == 32 and int(digest, 16) for digest in digests)
    for layout in layouts:
        assert sum(file.num_records for file in layout.train) == 50_000
        assert layout.test.num_records == 10_000


@pytest.mark.parametrize(
    ("record", "column", "value", "message"),
    [
        (0, 0, 20, r"test.bin: expected 0 to 19, found 0 to 20"),
        (0, 1, 100, r"test.bin: expected 0 to 99, found 0 to 100"),
        (0, 1, 99, r"expected 2 images of each class, found 1 to 3"),
    ],
    ids=["coarse label", "fine label", "balance"],
)
def test_labels_are_checked_where_no_md5_is_known(
    tmp_path: Path,
    python2_batch: Callable[..., bytes],
    record: int,
    column: int,
    value: int,
    message: str,
) -> None:
    spec, contents = small(CIFAR100, python2_batch)
    write(tmp_path, spec.binary, contents)
    records = np.frombuffer(contents["test.bin"], np.uint8).reshape(-1, 3074).copy()
    records[record, column] = value
    (tmp_path / "test.bin").write_bytes(records.tobytes())
    with pytest.raises(DataError, match=message):
        read_cifar(spec, tmp_path)


def test_malicious_batch_is_refused_by_checksum_and_again_by_content(
    tmp_path: Path, python2_batch: Callable[..., bytes]
) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    spec, contents = small(CIFAR100, python2_batch)
    content = pickle.dumps(Malicious(), protocol=2)
    write(tmp_path, spec.python, contents | {"test": content})
    with pytest.raises(DataError, match="wrong checksum"):
        read_cifar(spec, tmp_path)
    trusted = replace(spec.python, test=replace(spec.python.test, md5=md5(content)))
    with pytest.raises(DataError, match="it asks for .*system.*; nothing of it was run"):
        read_cifar(replace(spec, python=trusted), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickle_with_too_few_records_is_refused(
    tmp_path: Path, python2_batch: Callable[..., bytes]
) -> None:
    spec, contents = small(CIFAR10, python2_batch)
    content = python2_batch(np.zeros((3, 3072), np.uint8), [1, 2, 3])
    write(tmp_path, spec.python, contents | {"test_batch": content})
    test = replace(spec.python.test, md5=md5(content))
    with pytest.raises(DataError, match=r"test_batch: expected pixels \(20, 3072\).*\(3, 3072\)"):
        read_cifar(replace(spec, python=replace(spec.python, test=test)), tmp_path)


def dataset(images: np.ndarray, *, augment: bool) -> CifarDataset:
    labels = np.arange(len(images))
    return CifarDataset(images, labels, mean=CIFAR10.mean, std=CIFAR10.std, augment=augment)


def test_batch_is_normalised_per_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)
    inputs = dataset(images, augment=True).inputs(np.array([4, 0]))
    expected = images[[4, 0]] / 255
    for channel in range(3):
        expected[:, channel] -= CIFAR10.mean[channel]
        expected[:, channel] /= CIFAR10.std[channel]
    assert inputs.dtype == torch.float32 and inputs.shape == (2, 3, 32, 32)
    torch.testing.assert_close(inputs.double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_augmented_border_is_black_not_mean() -> None:
    white = np.full((64, 3, 32, 32), 255, np.uint8)
    augmented = dataset(white, augment=True).inputs(np.arange(64), np.random.default_rng(0))
    black = -torch.tensor(CIFAR10.mean) / torch.tensor(CIFAR10.std)
    white_value = (1 - torch.tensor(CIFAR10.mean)) / torch.tensor(CIFAR10.std)
    for channel in range(3):
        values = augmented[:, channel].unique()
        torch.testing.assert_close(values, torch.stack([black, white_value])[:, channel])


def test_augmentation_is_a_function_of_its_rng_and_can_be_switched_off() -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 3, 32, 32), np.uint8)
    indices = np.arange(32)
    on, off = dataset(images, augment=True), dataset(images, augment=False)
    first, again, other = (on.inputs(indices, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(off.inputs(indices, np.random.default_rng(1)), on.inputs(indices))
    assert on.targets(indices).tolist() == list(range(32))


def test_test_split_is_never_augmented(cifar10: tuple[CifarSpec, Path, Contents]) -> None:
    spec, folder, _ = cifar10
    train, test = cifar_splits(spec, folder, augment=True)
    indices, rng = np.arange(20), np.random.default_rng(0)
    assert torch.equal(test.inputs(indices, rng), test.inputs(indices))
    assert not torch.equal(train.inputs(indices, rng), train.inputs(indices))
