"""What recording a timeline costs: iterations with a trace on against iterations without.

The same pipeline trains on and on. Each round has two halves, one with a trace and one without, in
changing order. Beside that, what one event costs is timed on its own. Run:

    python benchmarks/trace_cost/bench.py --output benchmarks/trace_cost/results.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import delaygrad as dg
from delaygrad.launch import Launch, joined, run_workers
from delaygrad.models import mlp, resnet
from delaygrad.partition import cuts_of
from delaygrad.records import StageClock
from delaygrad.runtime import Pipeline
from delaygrad.runtime.exchange import broadcast
from delaygrad.training.run_folder import environment

HALF_S = {1: 0.25, 2: 1.0}  # of a round, by the number of stages


def make_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(size, 3, 32, 32).to(memory_format=torch.channels_last)
    return inputs, torch.randint(10, (size,))


def seconds(pipeline: Pipeline, data: Any, iterations: int, *, traced: bool) -> float:
    """Seconds per iteration; one more comes before them, so that both halves begin alike."""
    pipeline.step(*data)
    if traced:
        pipeline.start_trace(iterations)
    start = time.perf_counter()
    for _ in range(iterations):
        pipeline.step(*data)
    return (time.perf_counter() - start) / iterations


def contest(
    name: str, pipeline: Pipeline, data: Any, iterations: int, rounds: int
) -> dict[str, Any]:
    times: dict[bool, list[float]] = {False: [], True: []}
    for traced in (False, True):  # warm up
        seconds(pipeline, data, iterations, traced=traced)
    for index in range(rounds):
        for traced in (False, True) if index % 2 == 0 else (True, False):
            times[traced].append(seconds(pipeline, data, iterations, traced=traced))
    ratios = [on / off for off, on in zip(times[False], times[True], strict=True)]
    events = sum(len(stage.events) for stage in pipeline.stage_traces())
    return {
        "workload": name,
        "untraced_ms": round(1e3 * statistics.median(times[False]), 4),
        "traced_ms": round(1e3 * statistics.median(times[True]), 4),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)[::2]],
        "events_per_iteration": round(events / iterations, 2),
        "rounds": rounds,
        "iterations_per_round": iterations,
    }


def event_us(count: int = 20_000) -> dict[str, float]:
    """Microseconds that measuring one activity takes, without and with a trace; the least of 20."""
    found = {}
    for name, traced in (("untraced", False), ("traced", True)):
        clock = StageClock()
        times = []
        for iteration in range(20):
            if traced:
                clock.start_trace(1)
            clock.begin_iteration(iteration)
            start = time.perf_counter()
            for index in range(count):
                with clock.measure("forward", "F", index, 0):
                    pass
            times.append((time.perf_counter() - start) / count)
        found[name] = round(1e6 * min(times), 3)
    return found


def measure_mlp(rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = mlp(sample_shape=(3, 32, 32), num_classes=10)
    pipeline = dg.LocalPipeline([model], nn.functional.cross_entropy, make_sgd, method=dg.DDG())
    data = batch(32)
    iterations = max(1, round(HALF_S[1] / seconds(pipeline, data, 50, traced=False)))
    return contest("mlp 3072-128-128-128-10, batch 32, K=1", pipeline, data, iterations, rounds)


def resnet_worker(launch: Launch, rounds: int) -> dict[str, Any]:
    with joined(launch, torch.device("cpu")) as rank:
        torch.manual_seed(0)
        data = batch(32)

        def network() -> nn.Sequential:
            torch.manual_seed(0)
            return resnet(20, num_classes=10).to(memory_format=torch.channels_last)

        cuts = cuts_of(dg.split(network(), 2, sample_inputs=data[0])) if rank == 0 else None
        cuts = broadcast(cuts)
        stage = dg.split(network(), 2, cuts=cuts)[rank]
        pipeline = dg.DistributedPipeline(stage, nn.functional.cross_entropy, make_sgd)
        iterations = max(1, round(HALF_S[2] / seconds(pipeline, data, 5, traced=False)))
        iterations = broadcast(iterations)  # all take the same steps
        name = "resnet20, batch 32, K=2"
        result = contest(name, pipeline, data, iterations, rounds)
        pipeline.flush()
    return {**result, "cuts": cuts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    launch = Launch(num_workers=2)
    results = [
        measure_mlp(options.rounds),
        run_workers(resnet_worker, launch, launch, options.rounds)[0],
    ]
    report = {
        "threads": 1,
        "environment": environment(),
        "event_us": event_us(),
        "results": results,
    }
    print(json.dumps(report, indent=2))
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
