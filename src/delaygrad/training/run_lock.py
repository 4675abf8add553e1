"""One run in a folder at a time."""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from delaygrad.errors import ConfigError
from delaygrad.training.run_folder import LOCK, writing

_NOTED_S = 1.0  # for a holder to write who it is


class RunLock:
    """Keep other processes out of a run's folder; a context manager that releases the lock.

    The operating system releases the lock when this process ends, for any reason. The file stays
    and names the last holder. Where several hosts of one run share a disk, the first
    holds the lock, and the others recognise their run by its token.
    """

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        """Of the run that this process works on; ranks of one run share one."""
        self._file: TextIO | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk: the error of the write was raised before
                self._file.close()

    def take(self, run_dir: Path) -> None:
        """Take the lock, or find it held by the same run; taking it again does nothing.

        Raises ConfigError if another run holds the lock, or the folder is not writable.
        """
        if self._file is not None:
            return
        path = run_dir / LOCK
        with writing(path):
            run_dir.mkdir(parents=True, exist_ok=True)
            file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                pid, host, token = _holder(file)
            if token != self.token:
                raise ConfigError(
                    f"another process works on this run ({run_dir}, pid: {pid}, host: {host}); "
                    "wait until it ends, or stop it"
                ) from None
        except OSError:
            file.close()  # a disk without locks
        else:
            self._file = file
            with writing(path):
                file.truncate(0)
                file.write(f"{os.getpid()} {socket.gethostname()} {self.token}\n")
                file.flush()


def _holder(file: TextIO) -> tuple[str, str, str]:
    deadline = time.monotonic() + _NOTED_S
    while True:
        file.seek(0)
        words = file.read().split()
        if len(words) == 3:
            return words[0], words[1], words[2]
        if time.monotonic() > deadline:
            return "unknown", "unknown", ""
        time.sleep(_NOTED_S / 20)
