"""Run the ``delaygrad`` command: in this process, or as a user does, possibly under torchrun.

Every wait is bounded, and what a command has started is dead when its test is over.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from delaygrad.cli.main import main
from delaygrad.records import read_events

TIMEOUT_S = 90.0
DELAYGRAD = (sys.executable, "-m", "delaygrad")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
CUTS = {1: (), 2: ("linear2",), 3: ("linear2", "linear3")}


def delaygrad(*arguments: object) -> subprocess.CompletedProcess:
    """Run a command to its end in this process, which has imported torch already.

    What processes below this one print is not in the result.
    """
    words = [str(word) for word in arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with (
            patch.object(sys, "argv", ["delaygrad", *words]),
            patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        err.write(f"{end.code}\n" if isinstance(end.code, str) else "")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@contextmanager
def running(*command: object) -> Iterator[subprocess.Popen]:
    """Start a command in a session of its own; kill what is left of the session at the end."""
    with tempfile.TemporaryDirectory(prefix="command-") as temporary:  # a killed one cannot tidy up
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": temporary},
        )
        try:
            yield process
        finally:
            for pid in session(process):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()


def session(process: subprocess.Popen) -> list[int]:
    """The pids of a command that ``running`` started and of what it started, while they run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (command, which may hold spaces) state ppid pgrp session ...
            state, _, _, session_id = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it ended while we looked
        if int(session_id) == process.pid and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def workers(process: subprocess.Popen) -> list[int]:
    """The pids of the workers of a distributed run, in the order of their ranks."""

    def is_worker(pid: int) -> bool:
        try:
            # A fork server's child has its command line.
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            return all(
                "forkserver" in Path(f"/proc/{p}/cmdline").read_text() for p in (pid, parent)
            )
        except OSError:
            return False

    return [pid for pid in session(process) if is_worker(pid)]


def ranks_of(process: subprocess.Popen) -> list[int]:
    """The pids of the ranks that a torchrun has started, each in a session of its own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(p) for p in children if "delaygrad" in Path(f"/proc/{p}/cmdline").read_text()]


def train(run_dir: Path, num_stages: int, *arguments: object) -> list[str]:
    """The arguments that train a small network on digits."""
    cuts = ("--cuts", *CUTS[num_stages]) if num_stages > 1 else ()
    given = (
        "train", "--model", "mlp", "--width", 16, "--depth", 4, "--batch-size", 100,
        "--dropout", 0.1, "--stages", num_stages, *cuts, "--run-dir", run_dir, *arguments,
    )  # fmt: skip
    return [str(word) for word in given]


def here(arguments: list[str]) -> None:
    """Run a command in this process, and let its errors come through."""
    main([*arguments, "--quiet", "--json"])


def wait_until(what: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> None:
    """Return once ``what()`` is true."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"still waiting after {timeout_s} s"
        time.sleep(0.02)


def summary(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def reports(run_dir: Path) -> list[int]:
    """The iterations whose training loss is on record, so far."""
    path = run_dir / "records.jsonl"
    events = read_events(path) if path.exists() else []
    return [event["iteration"] for event in events if event["event"] == "training"]


def iterations_done(run_dir: Path) -> int:
    """The newest iteration on record, 0 before there is one."""
    return max(reports(run_dir), default=0)
