"""The official CIFAR files: their names, sizes and checksums, and a checked download.

Every file is checked against an md5 of the authors or of torchvision's tables, with one exception:
no md5 of the unpacked binary CIFAR-100 files is published. Those are checked for their exact size,
the range of both labels, and 500 / 100 images per class; their archive is checked by its md5.

References:
    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from delaygrad.errors import DataError


@dataclass(frozen=True, kw_only=True)
class CifarFile:
    """One file of a layout; ``md5`` of its content, None where none is published."""

    name: str
    num_records: int
    md5: str | None


@dataclass(frozen=True, kw_only=True)
class CifarArchive:
    """The official archive of a layout; ``md5`` of the archive as it is."""

    name: str
    md5: str


@dataclass(frozen=True, kw_only=True)
class CifarLayout:
    """One official version: its folder (on disk and in the archive), archive and files."""

    folder: str
    archive: CifarArchive
    train: tuple[CifarFile, ...]
    test: CifarFile

    @property
    def files(self) -> tuple[CifarFile, ...]:
        """All files, the test file last."""
        return (*self.train, self.test)


@dataclass(frozen=True, kw_only=True)
class CifarSpec:
    """All that distinguishes the two data sets.

    Args:
        name: as given to ``load``.
        label_ranges: classes per label byte of a binary record; the last label is the one used.
        label_key: its name in the Python version.
        mean: of the training pixels in [0, 1], per channel.
        std: their deviation.
        binary: the binary version.
        python: the Python version.
    """

    name: str
    label_ranges: tuple[int, ...]
    label_key: bytes
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    binary: CifarLayout
    python: CifarLayout

    @property
    def num_classes(self) -> int:
        """Classes of the label that is used."""
        return self.label_ranges[-1]


def _cifar10_files(suffix: str, md5s: tuple[str, ...]) -> tuple[tuple[CifarFile, ...], CifarFile]:
    names = [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]
    files = [
        CifarFile(name=name, num_records=10_000, md5=md5)
        for name, md5 in zip(names, md5s, strict=True)
    ]
    return tuple(files[:5]), files[5]


_BINARY10 = _cifar10_files(
    ".bin",
    (
        "5dd7e06a14cb22eb9f671a540d1b7c25",
        "5ea93a67294ea407fff1d09f752e9692",
        "942cd6a4bcdd0dd3c604fbe906cb4421",
        "ae636b3ba5c66a11e91e8cb52e771fcb",
        "53f37980c15c3d472c316c40844f3f0d",
        "803d5f7f4d78ea53de84dbe85f74fb6d",
    ),
)
_PYTHON10 = _cifar10_files(
    "",
    (
        "c99cafc152244af753f735de768cd75f",
        "d4bba439e000b95fd0a9bffe97cbabec",
        "54ebc095f3ab1f0389bbae665268c751",
        "634d18415352ddfa80567beed471001a",
        "482c414d41f54cd18b22e5b47cb7c3cb",
        "40351d587109b95175f43aff81a1287e",
    ),
)

CIFAR10 = CifarSpec(
    name="cifar10",
    label_ranges=(10,),
    label_key=b"labels",
    mean=(0.49139968, 0.48215841, 0.44653091),
    std=(0.24703223, 0.24348513, 0.26158784),
    binary=CifarLayout(
        folder="cifar-10-batches-bin",
        archive=CifarArchive(name="cifar-10-binary.tar.gz", md5="c32a1d4ab5d03f1284b67883e8d87530"),
        train=_BINARY10[0],
        test=_BINARY10[1],
    ),
    python=CifarLayout(
        folder="cifar-10-batches-py",
        archive=CifarArchive(name="cifar-10-python.tar.gz", md5="c58f30108f718f92721af3b95e74349a"),
        train=_PYTHON10[0],
        test=_PYTHON10[1],
    ),
)

CIFAR100 = CifarSpec(
    name="cifar100",
    label_ranges=(20, 100),
    label_key=b"fine_labels",
    mean=(0.50707516, 0.48654887, 0.44091784),
    std=(0.26733429, 0.25643846, 0.27615047),
    binary=CifarLayout(
        folder="cifar-100-binary",
        archive=CifarArchive(
            name="cifar-100-binary.tar.gz", md5="03b5dce01913d631647c71ecec9e9cb8"
        ),
        train=(CifarFile(name="train.bin", num_records=50_000, md5=None),),
        test=CifarFile(name="test.bin", num_records=10_000, md5=None),
    ),
    python=CifarLayout(
        folder="cifar-100-python",
        archive=CifarArchive(
            name="cifar-100-python.tar.gz", md5="eb9058c3a382ffc7106e4002c42a8d85"
        ),
        train=(
            CifarFile(name="train", num_records=50_000, md5="16019d7e3df5f24257cddd939b257f8d"),
        ),
        test=CifarFile(name="test", num_records=10_000, md5="f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
)


_ADDRESS = "https://www.cs.toronto.edu/~kriz/"


def download(name: str, data_dir: Path) -> Path:
    """Fetch the official archive into a folder and unpack it there, for ``load`` to find.

    ``load`` never downloads. A correct archive that is already there is unpacked. An archive is
    checked against its md5 before that.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: the folder; made if missing.
    Returns:
        The folder of the unpacked files, in their binary version.
    Raises:
        DataError: nothing to download under this name, no connection, or a wrong checksum.
    References:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    specs = {spec.name: spec for spec in (CIFAR10, CIFAR100)}
    if name not in specs:
        raise DataError(f"nothing to download (name: {name!r}); use {' or '.join(specs)}")
    import pooch  # the library alone does not install it

    layout = specs[name].binary
    archive = layout.archive
    try:
        pooch.retrieve(
            url=_ADDRESS + archive.name,
            known_hash=f"md5:{archive.md5}",
            fname=archive.name,
            path=data_dir,
            processor=pooch.Untar(extract_dir="."),
        )
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: wrong md5
        raise DataError(
            f"download failed ({_ADDRESS}{archive.name}: {error}); try again, or put the archive "
            f"into {data_dir} yourself"
        ) from error
    return data_dir / layout.folder
