"""A small paper to reproduce, and run folders as its runs would leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from delaygrad.records import EventLog
from delaygrad.reproduce.grid import PlannedRun
from delaygrad.reproduce.paper import load_target
from delaygrad.reproduce.target import Target

TRAINING = """
title = "A small comparison"
kind = "training"
reference = "nobody, nowhere"

[settings]
model = "mlp"
width = 16
depth = 4
batch_size = 100
epochs = 2

[recipes.sgd]
title = "SGD"
settings = { optimizer = "sgd", lr = 0.05 }

[recipes.adam]
title = "Adam"
settings = { optimizer = "adam" }

[cuts.mlp]
2 = ["linear2"]
3 = ["linear2", "linear3"]

[scales.smoke]
about = "all of it"
seeds = [0, 1]
lines = [
    { method = "bp", stages = [1] },
    { recipes = ["sgd"], method = "ddg", stages = [2, 3] },
    { recipes = ["sgd"], method = "ddg", stages = [3], slack = 1, seeds = [1] },
]

[[published]]
quantity = "best_accuracy"
stages = 2
recipe = "sgd"
value = 91.5
who = "Somebody"
mark = "read"
source = "their table 1"
"""

SPEED = """
title = "Speed"
kind = "speed"
reference = "nobody"
[scales.smoke]
about = "tiny"
contests = [{ workload = "resnet8", how = "computing", stages = [2] }]
[[published]]
quantity = "speedup"
stages = 2
value = 1.4
who = "Somebody"
mark = "read"
source = "their figure"
"""

MEMORY = """
title = "Memory"
kind = "memory"
reference = "nobody"
summary = "It grows."
[cuts.resnet8]
2 = ["group2_block1"]
[scales.smoke]
about = "tiny"
lines = [
    { model = "resnet8", stages = [1, 2], batch_size = 4 },
    { model = "resnet8", stages = [2], batch_size = 4, options = { recompute = true } },
]
"""


def write_target(experiments: Path, text: str = TRAINING, name: str = "paper-small") -> Target:
    """Write a target's file and load it."""
    folder = experiments / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "target.toml").write_text(text, encoding="utf-8")
    return load_target(folder, name.partition("-")[0])


def runs_of(tmp_path: Path, text: str = TRAINING, scale: str = "smoke") -> list[PlannedRun]:
    """The planned runs of a target, in ``tmp_path / "out"``."""
    return list(write_target(tmp_path / "experiments", text).plan(scale, tmp_path / "out", None))


def by_name(runs: list[PlannedRun]) -> dict[str, PlannedRun]:
    return {run.name: run for run in runs}


def record(
    run: PlannedRun,
    accuracies: list[float],
    *,
    losses: tuple[float, ...] = (2.0, 1.0),
    diverged: bool = False,
    samples_per_s: float = 100.0,
    **changed: Any,
) -> Path:
    """Leave what a run leaves: an epoch of 10 iterations for each accuracy.

    Args:
        run: whose folder.
        accuracies: of the test set, after each epoch, 0 to 1.
        losses: of training, recorded at even distances within each epoch.
        diverged: it did, after these epochs.
        samples_per_s: as recorded.
        changed: settings that ``config.json`` has instead; None: lacks.
    """
    folder = run.run_dir
    folder.mkdir(parents=True)
    config = {**run.config.to_json(), **changed}
    config = {k: v for k, v in config.items() if k not in changed or changed[k] is not None}
    environment = {"torch": "2.13.0", "system": "Linux", "hostname": "somebodys-laptop"}
    text = json.dumps({"config": config, "environment": environment}, default=str)
    (folder / "config.json").write_text(text, encoding="utf-8")
    log = EventLog(folder / "records.jsonl")
    for epoch, accuracy in enumerate(accuracies):
        for index, loss in enumerate(losses, start=1):
            done = epoch + index / len(losses)
            log.write(
                "training", iteration=round(10 * done), epoch=done, loss=loss / (epoch + 1),
                samples_per_s=samples_per_s,
            )  # fmt: skip
        log.write(
            "evaluation", iteration=10 * (epoch + 1), epoch=epoch + 1.0, split="test",
            accuracy=accuracy, loss=1.0,
        )  # fmt: skip
    if diverged:
        epochs = float(len(accuracies))
        log.write("diverged", iteration=10 * len(accuracies), epoch=epochs, loss="nan")
    else:
        summary = {
            "test_accuracy": accuracies[-1],
            "test_loss": 1.0,
            "epochs": float(len(accuracies)),
            "samples_per_s": samples_per_s,
            "parameters_sha256": run.name,
            "run_dir": str(folder),
            "curves": str(folder / "curves.png"),
        }
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    log.close()
    return folder
