"""Run folders as `delaygrad train` leaves them, with curves that are known in advance."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from timelines import simulated

PER_EPOCH = 10  # iterations

CONFIG: dict[str, Any] = {
    "data": "cifar10", "data_dir": "/somewhere/data", "holdout": 0, "augment": True,
    "model": "resnet8", "width": None, "method": "ddg", "slack": 0, "micro_batches": 1,
    "recompute": False, "stash_dtype": None, "boundary_dtype": None, "stages": 1, "cuts": [],
    "runtime": "local", "threads": 1, "device": "cpu", "timeout_s": 600.0, "optimizer": "sgd",
    "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005, "lr_schedule": "step",
    "lr_milestones": [0.5, 0.75], "warmup": 0, "epochs": 4, "iterations": None,
    "batch_size": 128, "seed": 0, "run_dir": "/somewhere/runs/x", "log_every": 5,
    "evaluate_every": 1, "evaluation_batch_size": 256, "checkpoint_every": 10,
    "keep_checkpoints": 1, "trace": 0,
}  # fmt: skip
ENVIRONMENT: dict[str, Any] = {
    "delaygrad": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "system": "Linux x86_64",
    "processor": "a processor", "cpu_count": 2, "accelerator": None, "commit": "0123456789abcdef",
}  # fmt: skip


def record_run(
    run_dir: Path,
    *,
    accuracy: float = 0.7,
    best: float | None = None,
    until: int | None = None,
    diverged: bool = False,
    direction: bool = False,
    trace: bool = False,
    split: str = "test",
    environment: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a run folder; return it.

    The training loss falls as exp(-epoch); test accuracy rises evenly to ``accuracy``.

    Args:
        best: test accuracy one epoch before the end; by default none is better than the last.
        until: the last iteration; with one, the run is not finished.
        diverged: whether it ended because the loss was NaN.
        direction: record sufficient direction constants once an epoch.
        trace: record a timeline.
        split: what is evaluated after each epoch; the test set always is at the end.
        environment: what differs from ``ENVIRONMENT``.
        config: what differs from ``CONFIG``.
    """
    settings = {**CONFIG, "run_dir": str(run_dir), **config}
    num_stages, last = settings["stages"], settings["epochs"] * PER_EPOCH
    settings["cuts"] = settings["cuts"] or [f"layer{k}" for k in range(1, num_stages)]
    run_dir.mkdir(parents=True)
    recorded = {"config": settings, "environment": {**ENVIRONMENT, **(environment or {})}}
    (run_dir / "config.json").write_text(json.dumps(recorded))
    events: list[dict[str, Any]] = []
    for t in range(5, (until or last) + 1, 5):
        epoch = t / PER_EPOCH
        at = {"iteration": t, "elapsed_s": 2.0 * t, "epoch": epoch}
        loss = 2.5 * math.exp(-epoch)
        events.append({"event": "training", **at, "loss": loss, "lr": 0.1, "samples_per_s": 64.0})
        if t % PER_EPOCH:
            continue
        if direction:
            events.append({"event": "direction", **at, "stages": _directions(num_stages, epoch)})
        reached = accuracy * t / last
        if best is not None and t == last - PER_EPOCH:
            reached = best
        measured = {"accuracy": reached, "loss": loss + 0.1, "num_predictions": 10_000}
        splits = [split, "test"] if t == last and split != "test" else [split]
        events += [{"event": "evaluation", **at, "split": name, **measured} for name in splits]
    if diverged:
        t = (until or last) + 1
        events.append({"event": "diverged", "iteration": t, "epoch": t / PER_EPOCH, "loss": "nan"})
    (run_dir / "records.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if until is None and not diverged:
        (run_dir / "summary.json").write_text(json.dumps(_summary(settings, accuracy, last)))
    if trace:
        timeline = simulated([(30, 60, 5)] * num_stages, 12, hop_ms=4, send_ms=1, between_ms=2)
        (run_dir / "trace-events.json").write_text(json.dumps(timeline.to_json()))
    return run_dir


def _summary(settings: dict[str, Any], accuracy: float, last: int) -> dict[str, Any]:
    num_stages = settings["stages"]
    delays = [num_stages - 1 - k if settings["method"] == "ddg" else 0 for k in range(num_stages)]
    shares = {"forward": 0.25, "backward": 0.5, "update": 0.05, "send": 0.02, "wait": 0.1}
    stages = [
        {"stage": k, "delay": delay, **{f"{name}_share": v for name, v in shares.items()}}
        for k, delay in enumerate(delays)
    ]
    observed = [{"stage": k, "staleness_max": delay} for k, delay in enumerate(delays)]
    return {
        "test_accuracy": accuracy, "test_loss": 1.1 - accuracy, "test_predictions": 10_000,
        "train_loss": 2.5 * math.exp(-settings["epochs"]), "iterations": last,
        "epochs": settings["epochs"], "samples_per_s": 640.0, "train_s": 2.0 * last,
        "parameters_sha256": "5" * 64, "method": settings["method"], "num_stages": num_stages,
        "cuts": settings["cuts"], "stages": stages, "trace": {"stages": observed},
        "run_dir": settings["run_dir"],
    }  # fmt: skip


def _directions(num_stages: int, epoch: float) -> list[dict[str, Any]]:
    return [
        {
            "stage": k,
            "delay": num_stages - 1 - k,
            "sufficient_direction": 1 - 0.1 * (num_stages - 1 - k) * epoch,
            "cosine": 1 - 0.05 * (num_stages - 1 - k),
            "staleness_ratio": 0.1 * (num_stages - 1 - k),
        }
        for k in range(num_stages)
    ]
