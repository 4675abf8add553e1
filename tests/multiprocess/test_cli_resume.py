"""A run that was killed anywhere, and resumed, ends as the uninterrupted one."""

from __future__ import annotations

import functools
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import (
    DELAYGRAD,
    here,
    iterations_done,
    reports,
    running,
    session,
    summary,
    train,
    wait_until,
)

pytestmark = pytest.mark.slow

NUM_ITERATIONS = 200
LONG = ("--iterations", NUM_ITERATIONS, "--checkpoint-every", 7, "--log-every", 3, "--quiet")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The summary of the local run on so many stages; the distributed one ends alike."""

    @functools.cache
    def run(num_stages: int) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("uninterrupted") / str(num_stages)
        here(train(folder, num_stages, *LONG))
        return summary(folder)

    return run


@pytest.mark.parametrize(
    ("runtime", "num_stages"), [("local", 1), ("local", 3), ("distributed", 2), ("distributed", 3)]
)
def test_killed_run_continues_bit_for_bit(
    runtime: str, num_stages: int, tmp_path: Path, uninterrupted: Any
) -> None:
    folder = tmp_path / "run"
    chosen = random.Random(f"{runtime} {num_stages}").randrange(8, NUM_ITERATIONS // 2)
    with running(*DELAYGRAD, *train(folder, num_stages, *LONG, "--runtime", runtime)) as process:
        wait_until(lambda: iterations_done(folder) >= chosen or process.poll() is not None)
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not session(process), timeout_s=5)  # workers do not outlive it
    assert not (folder / "summary.json").exists(), "it ended before it could be killed"
    here(["resume", str(folder)])
    assert summary(folder)["parameters_sha256"] == uninterrupted(num_stages)["parameters_sha256"]
    assert summary(folder)["train_loss"] == uninterrupted(num_stages)["train_loss"]
    assert reports(folder) == sorted(set(reports(folder)))
    assert reports(folder)[-1] == NUM_ITERATIONS
