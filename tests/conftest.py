"""Every test starts from the same random state, on one thread; no test leaves a process behind."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

SEED = 0
GRACE_S = 5.0

# A job in the background of a script starts with SIGINT ignored, under nohup SIGHUP too, and so do
# its children. Commands under test are to be as a terminal starts them.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# The same examples in every run and no time limits: a failure is a failure everywhere. New examples
# come from `--hypothesis-profile search`; what it finds becomes an @example of the test.
settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    random.seed(SEED)
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind() -> Iterator[None]:
    yield
    left = _children()
    _end(left)
    assert not left, f"the tests left processes running (pid: command): {left}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "full" not in config.option.markexpr:
        left_out = [item for item in items if "full" in item.keywords]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "full" not in item.keywords]
    for item in items:
        if "timing" in item.keywords:
            item.add_marker(pytest.mark.xdist_group("timing"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _children() -> dict[int, str]:
    """Our running child processes, by pid; {} where there is no /proc to ask.

    The resource tracker and the fork server of multiprocessing are Python's own, live as long as we
    do, and are no test's.
    """
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (command, which may hold spaces) state ppid ...
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            command = stat.with_name("cmdline").read_text().replace("\0", " ").strip()
        except (OSError, UnicodeDecodeError):
            continue  # it ended while we looked
        own = "resource_tracker" in command or "forkserver" in command
        if int(parent) == os.getpid() and state != "Z" and not own:
            found[int(stat.parent.name)] = command
    return found


def _end(pids: dict[int, str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids.keys() & _children().keys():
            os.kill(pid, number)
        deadline = time.monotonic() + GRACE_S
        while pids.keys() & _children().keys() and time.monotonic() < deadline:
            time.sleep(0.05)
