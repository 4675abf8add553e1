"""Temporary folders are private, and those of killed processes go at the next start."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from delaygrad.launch import private_folder

HOLD = """
import sys
from delaygrad.launch import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_is_private_and_gone_afterwards(place: Path) -> None:
    with private_folder() as folder:
        (folder / "store").touch()
        assert folder.parent == place and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(place.iterdir())


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(place: Path) -> None:
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TMPDIR": str(place)},
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        folders = []
        for holder in holders:
            assert holder.stdout is not None
            folders.append(Path(holder.stdout.readline().strip()))
        (folders[0] / "store").touch()
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        with private_folder() as own:
            assert sorted(place.iterdir()) == sorted([own, folders[1]])
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def test_what_looks_like_a_folder_of_ours_is_left_alone(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (place / "delaygrad-launch-link").symlink_to(elsewhere)
    (place / "delaygrad-launch-file").touch()
    (place / "delaygrad-launch-open").mkdir(mode=0o755)
    before = sorted(place.iterdir())
    with private_folder():
        pass
    assert sorted(place.iterdir()) == before and elsewhere.is_dir()
