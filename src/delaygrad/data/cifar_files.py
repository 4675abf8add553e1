"""Find, check and read the official CIFAR files, in any of their versions.

The first complete one of these is read:

1. the binary files, each as it is or .xz-compressed, in ``data_dir`` or the official subfolder;
2. the files of the Python version, likewise;
3. the binary archive; 4. the Python archive, in ``data_dir``, read without unpacking it to disk.
"""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from delaygrad.data.batch_pickle import read_batch_pickle
from delaygrad.data.cifar_official import CifarFile, CifarLayout, CifarSpec
from delaygrad.errors import DataError

__all__ = ["read_cifar"]

Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

_PIXELS = 3 * 32 * 32
# The largest official file has 155 MB; one that unpacks to more than this is something else.
_MAX_FILE_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """One file's content and what it should be."""

    source: str
    file: CifarFile
    content: bytes


def read_cifar(spec: CifarSpec, data_dir: Path) -> tuple[Split, Split]:
    """Read both splits, checked.

    Args:
        spec: which data set.
        data_dir: the folder with the files, or with the official subfolder, or with the archive.
    Returns:
        (train, test), each (images, labels): (N, 3, 32, 32) uint8 and (N,) int64.
    Raises:
        DataError: a file is missing, of the wrong size, has the wrong checksum, or holds a label
            that does not exist.
    """
    layout, paths, archive = _locate(spec, data_dir)
    if archive is None:
        splits = _parse_all(spec, layout, _read_files(layout, paths))
    else:
        splits = _parse_all(spec, layout, _read_archive(layout, archive))
    batches = [splits[file.name] for file in layout.files]
    train, test = _join(batches[:-1]), _join(batches[-1:])
    for labels in (train[1], test[1]):
        _check_balance(spec, labels, data_dir)
    return train, test


def _locate(spec: CifarSpec, data_dir: Path) -> tuple[CifarLayout, list[Path], Path | None]:
    """Choose the layout to read, and its files or its archive."""
    if not data_dir.is_dir():
        raise DataError(f"data_dir is not a folder ({data_dir}); {_remedy(spec, data_dir)}")
    layouts = (spec.binary, spec.python)
    incomplete: list[str] = []
    for layout in layouts:
        for folder in (data_dir, data_dir / layout.folder):
            found = [_as_is_or_compressed(folder / file.name) for file in layout.files]
            paths = [path for path in found if path is not None]
            if len(paths) == len(found):
                return layout, paths, None
            if paths:
                incomplete.extend(
                    str(folder / file.name)
                    for file, path in zip(layout.files, found, strict=True)
                    if path is None
                )
    for layout in layouts:
        if (archive := data_dir / layout.archive.name).is_file():
            return layout, [], archive
    problem = (
        f"missing file (expected {', '.join(incomplete)}, found only the others)"
        if incomplete
        else f"no {spec.name} files (expected in {data_dir}, found none)"
    )
    raise DataError(f"{problem}; {_remedy(spec, data_dir)}")


def _as_is_or_compressed(path: Path) -> Path | None:
    """Return the path, or the path with .xz, whichever is a file."""
    compressed = path.with_name(path.name + ".xz")
    return next((candidate for candidate in (path, compressed) if candidate.is_file()), None)


def _remedy(spec: CifarSpec, data_dir: Path) -> str:
    return (
        f"put {spec.binary.archive.name}, {spec.python.archive.name} or their unpacked files into "
        f"{data_dir}, for instance with: delaygrad download {spec.name} --data-dir {data_dir}"
    )


def _read_files(layout: CifarLayout, paths: list[Path]) -> Iterator[_Batch]:
    """Read the files side by side: lzma leaves Python's lock while it decompresses."""
    with ThreadPoolExecutor() as pool:
        contents = pool.map(_read_file, paths)
        for file, path, content in zip(layout.files, paths, contents, strict=True):
            yield _Batch(source=str(path), file=file, content=content)


def _read_file(path: Path) -> bytes:
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as stream:
            return stream.read(_MAX_FILE_BYTES)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(
            f"cannot read ({path}: {error}); replace it by the official file"
        ) from error


def _read_archive(layout: CifarLayout, path: Path) -> Iterator[_Batch]:
    """Read the archive's members in the archive's order, so that nothing is unpacked twice."""
    with path.open("rb") as stream:
        _check_md5(str(path), layout.archive.md5, hashlib.file_digest(stream, "md5").hexdigest())
    wanted = {f"{layout.folder}/{file.name}": file for file in layout.files}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name not in wanted:
                    continue
                stream_or_none = archive.extractfile(member) if member.isreg() else None
                if stream_or_none is not None:
                    content = stream_or_none.read(_MAX_FILE_BYTES)
                    file = wanted.pop(member.name)
                    yield _Batch(source=f"{path}:{member.name}", file=file, content=content)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"cannot read ({path}: {error}); replace it by the official file"
        ) from error
    if wanted:
        raise DataError(f"not in the archive ({path}: {', '.join(wanted)}); download it again")


def _parse_all(spec: CifarSpec, layout: CifarLayout, batches: Iterator[_Batch]) -> dict[str, Split]:
    parse = _parse_binary if layout is spec.binary else _parse_python
    return {batch.file.name: parse(spec, batch) for batch in batches}


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
    _check_content_md5(batch)
    records = np.frombuffer(batch.content, dtype=np.uint8).reshape(-1, record_bytes)
    for column, num_classes in enumerate(spec.label_ranges):
        _check_labels(batch.source, records[:, column], num_classes)
    labels = records[:, num_labels - 1].astype(np.int64)
    return records[:, num_labels:].reshape(-1, 3, 32, 32), labels


def _parse_python(spec: CifarSpec, batch: _Batch) -> Split:
    """Read a pickle, after its checksum and without letting it run anything."""
    _check_content_md5(batch)
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


def _check_content_md5(batch: _Batch) -> None:
    if batch.file.md5 is not None:
        found = hashlib.md5(batch.content, usedforsecurity=False).hexdigest()
        _check_md5(batch.source, batch.file.md5, found)


def _check_md5(source: str, expected: str, found: str) -> None:
    if found != expected:
        raise DataError(
            f"wrong checksum ({source}: expected md5 {expected}, found {found}); replace it by the "
            f"official file"
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
