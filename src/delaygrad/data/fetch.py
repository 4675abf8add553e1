"""A checked download of the official CIFAR archives."""

from __future__ import annotations

from pathlib import Path

from delaygrad.data.cifar_official import CIFAR10, CIFAR100
from delaygrad.errors import DataError

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
