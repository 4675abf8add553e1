"""Predicted against measured: the iteration of two stages in two processes on this machine.

For each workload and each round: measure the network anew and predict (as `delaygrad plan` does),
then train with those cuts in two processes of one thread each, and time it (as `delaygrad bench`
does). The prediction for this machine corrects for what two processes lose side by side; that for
devices of their own is kept beside it.

Run: python -m benchmarks.plan_accuracy.bench --output benchmarks/plan_accuracy/results.json
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import tyro

import delaygrad as dg
from benchmarks.alternating import write
from delaygrad.bench import ContestConfig, run_contest
from delaygrad.bench.config import WorkloadName
from delaygrad.bench.workload import load_workload
from delaygrad.launch import keep_freed_memory
from delaygrad.records.spread import quartiles

TURN_S = 4.0


def predict(config: ContestConfig) -> dict[str, Any]:
    workload = load_workload(config)
    inputs, targets = workload.batch()
    start = time.perf_counter()
    plan = dg.plan(
        workload.model(),
        inputs,
        num_stages=config.stages,
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


def measure(name: WorkloadName, cuts: tuple[str, ...]) -> dict[str, Any]:
    contest = ContestConfig(workload=name, contestants=("ddg",), cuts=cuts, turn_s=TURN_S)
    results = run_contest(contest, quiet=True)
    assert results is not None
    found: dict[str, Any] = results["contestants"][0]
    return found


def compare(name: WorkloadName, rounds: int) -> dict[str, Any]:
    found, config = [], ContestConfig(workload=name)
    for _ in range(rounds):
        prediction = predict(config)
        measured = measure(name, tuple(prediction["cuts"]))
        measured_s = measured["iteration"]["median"]
        found.append(
            {
                "predicted": prediction,
                "measured_s": measured_s,
                "stages_measured": measured["stages"],
                "predicted_over_measured": prediction["here_s"] / measured_s,
            }
        )
    ratios = quartiles([one["predicted_over_measured"] for one in found], 3)
    description = load_workload(config).description
    return {"workload": description, "predicted_over_measured": ratios, "rounds": found}


def main(
    output: Path,
    rounds: int = 3,
    workloads: tuple[WorkloadName, ...] = ("resnet56", "resnet110", "gpt25m"),
) -> None:
    """Predict and measure every workload."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as `delaygrad plan` does, and every rank that trains
    write(output, results=[compare(name, rounds) for name in workloads])


if __name__ == "__main__":
    tyro.cli(main)
