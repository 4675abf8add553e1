"""What becomes of a command whose output nobody reads to the end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from delaygrad.cli.main import main


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "delaygrad", "train", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # as head does, once it has seen enough
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_another_broken_pipe_is_no_quiet_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_to_nobody(arguments: list[str]) -> None:
        read, write = os.pipe()
        os.close(read)
        try:
            os.write(write, b"x")
        finally:
            os.close(write)

    monkeypatch.setattr("delaygrad.cli.main._run", write_to_nobody)
    with pytest.raises(BrokenPipeError):
        main([])
