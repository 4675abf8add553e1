"""Settings of every process that trains: when to end, and how to keep memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_POLL_S = 0.2

# Of glibc's malloc.h; see mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_NEVER = -1
_USERS_OWN = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")


def end_with_parent() -> None:
    """From now on, end this process when the one that started it has ended, however it ends."""
    starter = multiprocessing.parent_process()  # a fork server's child has two: this, and getppid
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and (starter is None or starter.is_alive()):
            time.sleep(_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_at_interrupt() -> None:
    """From now on, end this process at SIGINT, at once and silently.

    Python's own handler would first wait for a neighbour's message. A process that was started
    with SIGINT ignored (a background job of a script) goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def keep_freed_memory() -> bool:
    """From now on, let glibc's malloc keep freed memory for later allocations.

    A stage allocates the same tensors in every iteration. Getting their pages from the system again
    costs about 5 % of the time of a convolutional network on a CPU. The process keeps its peak
    memory until it ends.

    Returns:
        Whether it was done. It is not done with another C library, or if the user has set another
        allocator or its thresholds in the environment.
    """
    if any(os.environ.get(name) for name in _USERS_OWN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # An old glibc refuses a threshold above 32 MiB. The other two settings without this one would
    # make every large tensor a mapping of its own, the opposite of what is wanted.
    if not (mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_TOP_PAD, 2**26))


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within the block, PyTorch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
