"""Predicted against measured: the iteration of two stages in two processes on this machine.

For each workload and each round: measure the network anew and predict (as `delaygrad plan` does),
then train with those cuts in two processes of one thread each, and time it. The prediction for this
machine corrects for what two processes lose side by side; that for devices of their own is kept
beside it.

Run: python -m benchmarks.plan_accuracy.bench --output benchmarks/plan_accuracy/results.json
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro

import delaygrad as dg
from benchmarks.alternating import write
from delaygrad.bench.config import ContestConfig, WorkloadName
from delaygrad.bench.workload import Workload, load_workload
from delaygrad.launch import Launch, joined, keep_freed_memory, run_workers

STAGES = 2
TURNS = 5  # of so many iterations each; the median counts
ITERATIONS: dict[WorkloadName, int] = {"resnet56": 24, "resnet110": 6, "gpt25m": 6}
LAUNCH = Launch(num_workers=STAGES, threads=1)


def load(name: WorkloadName) -> Workload:
    """Return a workload of `delaygrad bench`, with the same optimizer for all."""
    sgd = load_workload(ContestConfig(workload="mlp")).make_optimizer
    return replace(load_workload(ContestConfig(workload=name)), make_optimizer=sgd)


def predict(workload: Workload) -> dict[str, Any]:
    model, (inputs, targets) = workload.model(), workload.batch()
    start = time.perf_counter()
    plan = dg.plan(
        model,
        inputs,
        num_stages=[STAGES],
        loss=lambda outputs: workload.loss_fn(outputs, targets),
        make_optimizer=workload.make_optimizer,
        link="loopback",
        side_by_side=True,
    )
    planning_s = time.perf_counter() - start
    (found,) = plan.forecasts
    assert plan.link is not None
    return {
        "cuts": list(found.cuts),
        "one_device_s": plan.whole.total_s,
        "stages": [{**stage.times(), "total_s": stage.total_s} for stage in found.stage_plans],
        "own_devices_s": found.iteration_s,
        "here_s": found.here.iteration_s,
        "slowdown": plan.slowdown,
        **vars(plan.link),
        "planning_s": planning_s,
    }


def train(name: WorkloadName, cuts: list[str]) -> dict[str, Any]:
    """What each rank does: time turns of iterations in steady state."""
    workload = load(name)
    with joined(LAUNCH, torch.device("cpu")) as rank:
        stage = workload.stages(STAGES, cuts)[rank]
        pipeline = dg.DistributedPipeline(
            stage, workload.loss_fn, workload.make_optimizer, method=dg.DDG()
        )
        inputs, targets = workload.batch()
        iterations = ITERATIONS[name]
        for _ in range(4):
            pipeline.step(inputs, targets)
        before, times = pipeline.stage_seconds()[0], []
        for _ in range(TURNS):
            start = time.perf_counter()
            for _ in range(iterations):
                pipeline.step(inputs, targets)
            times.append((time.perf_counter() - start) / iterations)
        after = pipeline.stage_seconds()[0]
        pipeline.flush()
    busy = {name: (after[name] - before[name]) / (TURNS * iterations) for name in after}
    return {"iteration_s": statistics.median(times), "busy_s": busy}


def compare(name: WorkloadName, rounds: int) -> dict[str, Any]:
    found = []
    for _ in range(rounds):
        prediction = predict(load(name))
        ranks = run_workers(train, LAUNCH, name, prediction["cuts"])
        measured_s = max(ranks[rank]["iteration_s"] for rank in ranks)
        found.append(
            {
                "predicted": prediction,
                "measured_s": measured_s,
                "stages_measured": [ranks[rank]["busy_s"] for rank in sorted(ranks)],
                "predicted_over_measured": prediction["here_s"] / measured_s,
            }
        )
    ratios = [one["predicted_over_measured"] for one in found]
    return {
        "workload": load(name).description,
        "predicted_over_measured": {
            "median": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
        },
        "rounds": found,
    }


def main(
    output: Path, rounds: int = 3, workloads: tuple[WorkloadName, ...] = tuple(ITERATIONS)
) -> None:
    """Predict and measure every workload."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as `delaygrad plan` does, and every rank that trains
    write(output, results=[compare(name, rounds) for name in workloads])


if __name__ == "__main__":
    tyro.cli(main)
