"""Run ``delaygrad`` as a user does, hit it, and see what is left of it. Every wait is bounded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DELAYGRAD = (sys.executable, "-m", "delaygrad")
LIMIT_S = 180.0
GONE_S = 15.0  # processes that are left after this are orphans


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``code`` is None if it had to be killed after ``LIMIT_S``."""

    code: int | None
    err: str
    orphans: int


@dataclass(frozen=True)
class Network:
    """What is trained: the smallest network that has a fill, a steady state and a drain."""

    stages: int
    iterations: int = 300
    checkpoint_every: int = 20
    runtime: str = "distributed"

    def arguments(self, run_dir: Path, *more: object) -> list[str]:
        """Return the command line that trains it, without the program's name."""
        cuts = ("linear2", "linear3")[: self.stages - 1]
        words = (
            "train", "--model", "mlp", "--width", 16, "--depth", 4, "--batch-size", 100,
            "--dropout", 0.1, "--stages", self.stages, "--cuts", *cuts,
            "--runtime", self.runtime, "--iterations", self.iterations, "--log-every", 5,
            "--checkpoint-every", self.checkpoint_every, "--quiet", "--run-dir", run_dir, *more,
        )  # fmt: skip
        return [str(word) for word in words]


class Command:
    """A command in a session of its own, with a folder of its own for temporary files."""

    def __init__(self, words: Sequence[object], temporary: str) -> None:
        self._process = subprocess.Popen(
            [str(word) for word in words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": temporary},
        )
        self.started_s = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def processes(self) -> dict[int, int]:
        """Return the parents of the session's processes, by pid."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # pid (command, which may hold spaces) state ppid pgrp session ...
                state, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state != "Z":
                    found[int(stat.parent.name)] = int(parent)
        return found

    def workers(self) -> list[int]:
        """Return the processes that a child of the launcher (the fork server) has started."""
        parents = self.processes()
        return sorted(pid for pid, parent in parents.items() if parents.get(parent) == self.pid)

    def wait(self) -> Ended:
        """Wait for the end of the command and of everything that it started."""
        try:
            _, err = self._process.communicate(timeout=LIMIT_S)
            code: int | None = self._process.returncode
        except subprocess.TimeoutExpired:
            err, code = "", None
        deadline = time.monotonic() + (GONE_S if code is not None else 0)
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        return Ended(code, err, len(self.processes()))

    def end(self) -> None:
        """Kill what is left."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.communicate()


@contextmanager
def running(*words: object) -> Iterator[Command]:
    """Within the block a command runs; afterwards nothing of it does."""
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        command = Command(words, temporary)
        try:
            yield command
        finally:
            command.end()


def run(*words: object) -> Ended:
    """Run a command to its end."""
    with running(*words) as command:
        return command.wait()


def wait_until(what: Callable[[], Any], command: Command) -> bool:
    """Return whether ``what()`` came true before the command or the time limit ended."""
    deadline = time.monotonic() + LIMIT_S
    while command.is_running and time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.005)
    return False


def events(run_dir: Path) -> int:
    """Return how many lines a run has on record."""
    try:
        return (run_dir / "records.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def digest(run_dir: Path) -> str | None:
    """Return the checksum of a finished run's parameters."""
    try:
        found: str = json.loads((run_dir / "summary.json").read_text())["parameters_sha256"]
    except OSError:
        return None
    return found
