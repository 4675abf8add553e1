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
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

import delaygrad as dg
from benchmarks.alternating import write
from delaygrad.launch import Launch, joined, keep_freed_memory, run_workers
from delaygrad.models import gpt, resnet

STAGES = 2
TURNS = 5  # of so many iterations each; the median counts
Workload = Literal["resnet56, batch 32", "resnet110, batch 128", "gpt 25M, 8 x 128"]
WORKLOADS: dict[Workload, int] = {
    "resnet56, batch 32": 24,
    "resnet110, batch 128": 6,
    "gpt 25M, 8 x 128": 6,
}
LAUNCH = Launch(num_workers=STAGES, threads=1)


def network(workload: Workload) -> nn.Sequential:
    torch.manual_seed(0)
    if workload.startswith("gpt"):  # 25.3 million parameters
        return gpt(vocabulary_size=65, context_length=128, width=512, num_layers=8, num_heads=8)
    depth = int(workload.removeprefix("resnet").partition(",")[0])
    return resnet(depth, num_classes=10).to(memory_format=torch.channels_last)


def batch(workload: Workload) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    if workload.startswith("gpt"):
        text = torch.randint(65, (8, 129))
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()
    size = int(workload.rpartition(" ")[2])
    images = torch.randn(size, 3, 32, 32).to(memory_format=torch.channels_last)
    return images, torch.randint(10, (size,))


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def make_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.001, momentum=0.9, weight_decay=5e-4)


def predict(workload: Workload) -> dict[str, Any]:
    model, (inputs, targets) = network(workload), batch(workload)
    start = time.perf_counter()
    plan = dg.plan(
        model,
        inputs,
        num_stages=[STAGES],
        loss=lambda outputs: loss_fn(outputs, targets),
        make_optimizer=make_sgd,
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


def train(workload: Workload, cuts: list[str]) -> dict[str, Any]:
    """What each rank does: time turns of iterations in steady state."""
    with joined(LAUNCH, torch.device("cpu")) as rank:
        stage = dg.split(network(workload), STAGES, cuts=cuts)[rank]
        pipeline = dg.DistributedPipeline(stage, loss_fn, make_sgd, method=dg.DDG())
        inputs, targets = batch(workload)
        iterations = WORKLOADS[workload]
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


def compare(workload: Workload, rounds: int) -> dict[str, Any]:
    found = []
    for _ in range(rounds):
        prediction = predict(workload)
        ranks = run_workers(train, LAUNCH, workload, prediction["cuts"])
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
        "workload": workload,
        "predicted_over_measured": {
            "median": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
        },
        "rounds": found,
    }


def main(output: Path, rounds: int = 3, workloads: tuple[Workload, ...] = tuple(WORKLOADS)) -> None:
    """Predict and measure every workload."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as `delaygrad plan` does, and every rank that trains
    write(output, results=[compare(workload, rounds) for workload in workloads])


if __name__ == "__main__":
    tyro.cli(main)
