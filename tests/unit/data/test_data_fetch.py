from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pooch
import pytest

from delaygrad.data import download
from delaygrad.data.cifar_official import CIFAR10
from delaygrad.errors import DataError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def retrieve(**arguments: Any) -> str:
        calls.append(arguments)
        return str(Path(arguments["path"]) / arguments["fname"])

    monkeypatch.setattr("pooch.retrieve", retrieve)
    return calls


@pytest.mark.parametrize(
    ("name", "archive", "folder", "md5"),
    [
        (
            "cifar10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin",
            "c32a1d4ab5d03f1284b67883e8d87530",
        ),
        (
            "cifar100", "cifar-100-binary.tar.gz", "cifar-100-binary",
            "03b5dce01913d631647c71ecec9e9cb8",
        ),
    ],
)  # fmt: skip
def test_pooch_gets_the_official_address_and_checksum(
    asked: list[dict[str, Any]], tmp_path: Path, name: str, archive: str, folder: str, md5: str
) -> None:
    assert download(name, tmp_path) == tmp_path / folder
    assert isinstance(asked[0].pop("processor"), pooch.Untar)
    assert asked == [
        {
            "url": f"https://www.cs.toronto.edu/~kriz/{archive}",
            "known_hash": f"md5:{md5}",
            "fname": archive,
            "path": tmp_path,
        }
    ]


@pytest.mark.parametrize("failure", [OSError("no route"), ValueError("hash does not match")])
def test_failed_download_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: Exception
) -> None:
    def retrieve(**arguments: Any) -> str:
        raise failure

    monkeypatch.setattr("pooch.retrieve", retrieve)
    with pytest.raises(DataError, match=f"download failed .*{failure}.*put the archive into"):
        download("cifar10", tmp_path)


def test_archive_that_is_already_there_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    digest = hashlib.md5((tmp_path / "cifar-10-binary.tar.gz").read_bytes()).hexdigest()
    own = replace(CIFAR10.binary, archive=replace(CIFAR10.binary.archive, md5=digest))
    monkeypatch.setattr("delaygrad.data.cifar_official.CIFAR10", replace(CIFAR10, binary=own))
    monkeypatch.setattr("pooch.HTTPDownloader.__call__", _offline)
    assert (download("cifar10", tmp_path) / "data_batch_1.bin").read_bytes() == b"abc"


def test_archive_that_is_already_there_but_wrong_is_never_returned(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"not the archive")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pooch.HTTPDownloader.__call__", _offline)
        with pytest.raises(DataError, match="download failed .*offline"):
            download("cifar10", tmp_path)


def _offline(*arguments: Any, **options: Any) -> None:
    raise OSError("offline")


def test_source_without_a_download_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing to download .*'digits'.*cifar10 or cifar100"):
        download("digits", tmp_path)
