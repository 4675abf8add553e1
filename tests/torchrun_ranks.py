"""Ranks as torchrun starts them, but forked from the server of ``ranks``: no launcher, no imports.

What torchrun itself does (restarts, signals, several hosts) is tested with torchrun itself.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.distributed import TCPStore

from delaygrad.cli.main import main
from delaygrad.launch import fork_server

TIMEOUT_S = 90.0


def run_program(
    world_size: int,
    program: Path | None,
    arguments: Sequence[object] = (),
    cwd: Path | None = None,
    *,
    kill_when: Callable[[], bool] | None = None,
) -> tuple[str, str]:
    """Run a program, or None for the ``delaygrad`` command, on all ranks; stdout and stderr.

    Args:
        kill_when: SIGKILL all ranks as soon as this holds; it must hold before they end.

    Raises:
        AssertionError: a rank did not end with 0, or not in time; says what it wrote to stderr.
    """
    store = TCPStore("127.0.0.1", 0, world_size, is_master=True, wait_for_workers=False)
    words = [str(word) for word in arguments]
    context = fork_server()
    with tempfile.TemporaryDirectory(prefix="torchrun-") as name:
        folder = Path(name)
        processes = [
            context.Process(
                target=_be_rank,
                args=(rank, world_size, store.port, folder, program, words, cwd or folder),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        try:
            for process in processes:
                process.start()
            end = time.monotonic() + TIMEOUT_S
            while kill_when is not None and not kill_when() and time.monotonic() < end:
                time.sleep(0.005)
            for process in processes:
                if kill_when is not None:
                    process.kill()
                process.join(TIMEOUT_S)
        finally:
            for process in processes:
                process.kill()
                process.join()
        out, err = (
            "".join((folder / f"{kind}{rank}").read_text() for rank in range(world_size))
            for kind in ("out", "err")
        )
    expected = 0 if kill_when is None else -signal.SIGKILL
    assert [process.exitcode for process in processes] == [expected] * world_size, err
    return out, err


def _be_rank(
    rank: int,
    world_size: int,
    port: int,
    folder: Path,
    program: Path | None,
    arguments: list[str],
    cwd: Path,
) -> None:
    for kind, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / f"{kind}{rank}", os.O_CREAT | os.O_WRONLY), number)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    os.chdir(cwd)
    torch.set_num_threads(1)
    if program is None:
        main(arguments)
    else:
        sys.argv = [str(program), *arguments]
        runpy.run_path(str(program), run_name="__main__")
    sys.stdout.flush()
