"""Find, check and read the official CIFAR files, in the binary or the Python version.

They lie in ``data_dir`` or in the official subfolder; complete binary files are preferred.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from delaygrad.data.batch_pickle import read_batch_pickle
from delaygrad.data.cifar_official import CifarFile, CifarLayout, CifarSpec
from delaygrad.errors import DataError

Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """One file's content and what it should be."""

    source: str
    file: CifarFile
    content: bytes


def read_cifar(spec: CifarSpec, data_dir: Path) -> tuple[Split, Split]:
    """Read (train, test), checked; each (N, 3, 32, 32) uint8 images and (N,) int64 labels.

    The files lie in the folder or in the official subfolder. A DataError says which file is
    missing, or not the official one.
    """
    layout, folder = _locate(spec, data_dir)
    parse = _parse_binary if layout is spec.binary else _parse_python
    batches = [parse(spec, _read(folder / file.name, file)) for file in layout.files]
    train, test = _join(batches[:-1]), _join(batches[-1:])
    for labels in (train[1], test[1]):
        _check_balance(spec, labels, data_dir)
    return train, test


def _locate(spec: CifarSpec, data_dir: Path) -> tuple[CifarLayout, Path]:
    """Choose the layout to read, and the folder of its files."""
    if not data_dir.is_dir():
        raise DataError(f"data_dir is not a folder ({data_dir}); {_remedy(spec, data_dir)}")
    problem = f"no {spec.name} files (expected in {data_dir}, found none)"
    for layout in (spec.binary, spec.python):
        for folder in (data_dir, data_dir / layout.folder):
            missing = [file.name for file in layout.files if not (folder / file.name).is_file()]
            if not missing:
                return layout, folder
            if len(missing) < len(layout.files):
                expected = ", ".join(str(folder / name) for name in missing)
                problem = f"missing file (expected {expected}, found only the others)"
    raise DataError(f"{problem}; {_remedy(spec, data_dir)}")


def _remedy(spec: CifarSpec, data_dir: Path) -> str:
    return (
        f"put the unpacked files of {spec.binary.archive.name} or {spec.python.archive.name} into "
        f"{data_dir}, for instance with: delaygrad download {spec.name} --data-dir {data_dir}"
    )


def _read(path: Path, file: CifarFile) -> _Batch:
    try:
        return _Batch(source=str(path), file=file, content=path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read ({path}: {error}); replace it by the official file"
        ) from error


def _parse_binary(spec: CifarSpec, batch: _Batch) -> Split:
    """Take records apart: a byte per label (coarse before fine), then the R, G and B planes."""
    num_labels = len(spec.label_ranges)
    record_bytes = num_labels + _PIXELS
    expected = batch.file.num_records * record_bytes
    if len(batch.content) != expected:
        raise DataError(
            f"wrong size ({batch.source}: expected {expected} bytes, found {len(batch.content)}); "
            f"replace it by the official file"
        )
    _check_md5(batch)
    records = np.frombuffer(batch.content, dtype=np.uint8).reshape(-1, record_bytes)
    for column, num_classes in enumerate(spec.label_ranges):
        _check_labels(batch.source, records[:, column], num_classes)
    labels = records[:, num_labels - 1].astype(np.int64)
    return records[:, num_labels:].reshape(-1, 3, 32, 32), labels


def _parse_python(spec: CifarSpec, batch: _Batch) -> Split:
    """Read a pickle, after its checksum and without letting it run anything."""
    _check_md5(batch)
    pixels, labels = read_batch_pickle(batch.content, spec.label_key, source=batch.source)
    expected = (batch.file.num_records, _PIXELS)
    if pixels.shape != expected or len(labels) != batch.file.num_records:
        raise DataError(
            f"wrong size ({batch.source}: expected pixels {expected} and a label each, found "
            f"pixels {pixels.shape} and {len(labels)} labels); replace it by the official file"
        )
    _check_labels(batch.source, labels, spec.num_classes)
    return pixels.reshape(-1, 3, 32, 32), labels


def _join(splits: list[Split]) -> Split:
    """Put the batches together in official order, in memory of our own."""
    images = np.concatenate([images for images, _ in splits])
    return images, np.concatenate([labels for _, labels in splits])


def _check_md5(batch: _Batch) -> None:
    found = hashlib.md5(batch.content, usedforsecurity=False).hexdigest()
    if batch.file.md5 not in (None, found):
        raise DataError(
            f"wrong checksum ({batch.source}: expected md5 {batch.file.md5}, found {found}); "
            "replace it by the official file"
        )


def _check_labels(
    source: str, labels: npt.NDArray[np.uint8] | npt.NDArray[np.int64], num_classes: int
) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"label out of range ({source}: expected 0 to {num_classes - 1}, found "
            f"{labels.min()} to {labels.max()}); replace it by the official file"
        )


def _check_balance(spec: CifarSpec, labels: npt.NDArray[np.int64], data_dir: Path) -> None:
    """Official splits hold every class equally often."""
    counts = np.bincount(labels, minlength=spec.num_classes)
    expected = len(labels) // spec.num_classes
    if (counts != expected).any():
        raise DataError(
            f"wrong labels ({data_dir}: expected {expected} images of each class, found "
            f"{counts.min()} to {counts.max()}); {_remedy(spec, data_dir)}"
        )
