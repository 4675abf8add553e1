"""What recording a timeline costs: iterations with a trace on against iterations without.

The same pipeline trains on and on. Each round has two halves, one with a trace and one without, in
changing order. Beside that, what one event costs is timed on its own. Run:

    python -m benchmarks.trace_cost.bench --output benchmarks/trace_cost/results.json
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

import delaygrad as dg
from benchmarks.alternating import alternate, seconds, write
from delaygrad.bench.workload import images
from delaygrad.launch import Launch, joined, run_workers
from delaygrad.models import mlp
from delaygrad.records import StageClock
from delaygrad.runtime import Pipeline
from delaygrad.runtime.exchange import broadcast

RESNET = images(20, batch_size=32)
CUTS = ["group2_block2"]


def train(pipeline: Pipeline, data: Any, iterations: int, *, traced: bool = False) -> None:
    """Train on one batch."""
    if traced:
        pipeline.start_trace(iterations)
    for _ in range(iterations):
        pipeline.step(*data)


def contest(name: str, pipeline: Pipeline, half_s: float, rounds: int) -> dict[str, Any]:
    untraced = partial(train, pipeline, RESNET.batch())
    ways = {"untraced": untraced, "traced": partial(untraced, traced=True)}
    iterations = max(1, round(half_s / seconds(untraced, 5)))
    if isinstance(pipeline, dg.DistributedPipeline):
        iterations = broadcast(iterations)  # all take the same steps
    for work in ways.values():  # warm up
        work(iterations)
    found = alternate(ways, rounds=rounds, iterations=iterations)
    events = sum(len(stage.events) for stage in pipeline.stage_traces())
    pipeline.flush()
    return {"workload": name, **found, "events_per_iteration": round(events / iterations, 2)}


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
                clock.start("F", index, version=0)
                clock.lap("forward")
            times.append((time.perf_counter() - start) / count)
        found[name] = round(1e6 * min(times), 3)
    return found


def resnet_worker(launch: Launch, rounds: int) -> dict[str, Any]:
    with joined(launch, torch.device("cpu")) as rank:
        stage = RESNET.stages(2, CUTS)[rank]
        pipeline = dg.DistributedPipeline(stage, RESNET.loss_fn, RESNET.make_optimizer)
        return contest("resnet20, batch 32, K=2", pipeline, 1.0, rounds)


def main(output: Path, rounds: int = 41) -> None:
    """Measure one stage in this process, and two stages in two processes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = mlp(sample_shape=(3, 32, 32), num_classes=10)
    pipeline = dg.LocalPipeline([model], RESNET.loss_fn, RESNET.make_optimizer)
    found = [contest("mlp 3072-128-128-128-10, batch 32, K=1", pipeline, 0.25, rounds)]
    launch = Launch(num_workers=2)
    found.append(run_workers(resnet_worker, launch, launch, rounds)[0])
    write(output, threads=1, event_us=event_us(), results=found)


if __name__ == "__main__":
    tyro.cli(main)
