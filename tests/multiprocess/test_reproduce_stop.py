"""A reproduction can be stopped and killed at any moment; the same command goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from commands import DELAYGRAD, delaygrad, iterations_done, running, session, summary, wait_until
from targets import write_target

pytestmark = pytest.mark.slow

TARGET = """
title = "A long one"
kind = "training"
reference = "nobody"
[settings]
model = "mlp"
width = 16
depth = 4
batch_size = 100
iterations = 1500
checkpoint_every = 50
log_every = 5
[recipes.sgd]
title = "SGD"
settings = { lr = 0.05 }
[cuts.mlp]
2 = ["linear2"]
[scales.smoke]
about = "two runs"
seeds = [0]
lines = [{ method = "bp", stages = [1] }, { method = "ddg", stages = [2] }]
"""
NAMES = ("sgd-bp-k1-seed0", "sgd-ddg-k2-seed0")

TROUBLE = """
title = "Trouble"
kind = "training"
reference = "nobody"
[settings]
model = "mlp"
width = 16
depth = 4
batch_size = 100
epochs = 1
log_every = 1
[recipes.sgd]
title = "SGD"
settings = { lr = 0.05 }
[recipes.wild]
title = "SGD, lr 1e20"
settings = { lr = 1e20 }
[cuts.mlp]
2 = ["linear2"]
3 = ["linear2", "linear3"]
[scales.smoke]
about = "three runs"
seeds = [0]
lines = [
    { recipes = ["sgd"], method = "ddg", stages = [3], variant = "default", micro_batches = 64 },
    { recipes = ["sgd"], method = "ddg", stages = [2] },
    { recipes = ["wild"], method = "bp", stages = [1] },
]
"""


def command(experiments: Path, output: Path) -> tuple[str, ...]:
    words = ("reproduce", "paper", "--experiments", experiments, "--output", output)
    return tuple(map(str, (*words, "--workers", 2)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    write_target(folder / "experiments", TARGET)
    done = delaygrad(*command(folder / "experiments", folder / "out"))
    assert done.returncode == 0, done.stderr
    assert "| DDG K=2 (seed 0) |" in done.stdout
    runs = folder / "out" / "small" / "smoke"
    return {name: summary(runs / name)["parameters_sha256"] for name in NAMES}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_reproduction_goes_on_and_ends_with_the_same_bits(
    number: signal.Signals, tmp_path: Path, uninterrupted: dict[str, str]
) -> None:
    write_target(tmp_path / "experiments", TARGET)
    runs = tmp_path / "out" / "small" / "smoke"
    words = command(tmp_path / "experiments", tmp_path / "out")
    with running(*DELAYGRAD, *words) as process:
        wait_until(lambda: all(iterations_done(runs / name) > 50 for name in NAMES))
        os.kill(process.pid, number)
        wait_until(lambda: not session(process), timeout_s=20)  # the runs end with it
        _, err = process.communicate(timeout=10)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert f"stopped by {number.name}" in err
    assert not any((runs / name / "summary.json").exists() for name in NAMES)

    done = delaygrad(*words, "--json")
    assert done.returncode == 0, done.stderr
    found = {run["name"]: run for run in json.loads(done.stdout)["small"]["runs"]}
    assert {name: run["parameters_sha256"] for name, run in found.items()} == uninterrupted
    log = (runs / NAMES[0] / "runner.log").read_text()
    assert "Traceback" not in log


def test_a_diverged_run_is_a_result_and_a_failed_one_is_told_at_the_end(tmp_path: Path) -> None:
    write_target(tmp_path / "experiments", TROUBLE)
    done = delaygrad(*command(tmp_path / "experiments", tmp_path / "out"))
    assert done.returncode == 1
    assert "a run has failed (small/sgd-ddg-k3-seed0: " in done.stderr.replace("\n", " ")
    assert "too short for its micro-batches" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    results = json.loads((tmp_path / "out" / "small" / "smoke" / "results.json").read_text())
    rows = {row["series"]: row for row in results["rows"]}
    assert rows["sgd-ddg-k2"]["final_accuracy"]["n"] == 1
    assert (rows["wild-bp-k1"]["done"], rows["wild-bp-k1"]["diverged"]) == (1, 1)
    assert rows["sgd-ddg-k3"]["done"] == 0
