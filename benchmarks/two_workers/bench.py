"""Two stages in two processes against one process: throughput of one training iteration.

Contestants, in turn within each round, on the same batches from the same weights:

    bp, 1 thread     plain backpropagation in one process
    bp, 2 threads    the same, with both cores
    ddg, 2 workers   two stages in two processes, one thread each

Run: python benchmarks/two_workers/bench.py --output benchmarks/two_workers/results.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import delaygrad as dg
from delaygrad.models import resnet
from delaygrad.partition import cuts_of
from delaygrad.training.run_folder import environment

# Depth, batch size, rounds, iterations per round. A round begins and ends with all ranks together,
# which costs a pipeline one fill; a training run pays that once.
WORKLOADS = {"resnet56, batch 32": (56, 32, 7, 24), "resnet110, batch 128": (110, 128, 5, 12)}


def make_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def network(depth: int) -> nn.Sequential:
    torch.manual_seed(0)
    return resnet(depth, num_classes=10).to(memory_format=torch.channels_last)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(size, 3, 32, 32).to(memory_format=torch.channels_last)
    return inputs, torch.randint(10, (size,))


def plain_step(depth: int, size: int) -> Callable[[], object]:
    model, (inputs, targets) = network(depth), batch(size)
    optimizer = make_sgd(list(model.parameters()))

    def step() -> object:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def timed(step: Callable[[], object] | None, iterations: int) -> float:
    """Seconds per iteration from a common start until all ranks are done."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(iterations if step else 0):
        step()
    dist.barrier()
    return (time.perf_counter() - start) / iterations


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = [measure(rank, name, *shape) for name, shape in WORKLOADS.items()]
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


def measure(
    rank: int, name: str, depth: int, size: int, rounds: int, iterations: int
) -> dict[str, Any]:
    inputs, targets = batch(size)
    cuts = [cuts_of(dg.split(network(depth), 2, sample_inputs=inputs)) if rank == 0 else None]
    dist.broadcast_object_list(cuts, src=0)
    stage = dg.split(network(depth), 2, cuts=cuts[0])[rank]
    pipeline = dg.DistributedPipeline(stage, nn.functional.cross_entropy, make_sgd, method=dg.DDG())
    plain = plain_step(depth, size) if rank == 0 else None

    def bp(threads: int) -> float:
        torch.set_num_threads(threads)
        seconds = timed(plain, iterations)
        torch.set_num_threads(1)
        return seconds

    contestants = {
        "bp, 1 thread": lambda: bp(1),
        "bp, 2 threads": lambda: bp(2),
        "ddg, 2 workers": lambda: timed(lambda: pipeline.step(inputs, targets), iterations),
    }
    for run in contestants.values():
        run()  # warm up
    times: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    before = pipeline.stage_seconds()[0]
    for _ in range(rounds):
        for contestant, run in contestants.items():
            times[contestant].append(run())
    after = pipeline.stage_seconds()[0]
    busy = {k: (after[k] - before[k]) / (rounds * iterations) for k in after}
    stages: list[Any] = [None, None]
    dist.all_gather_object(stages, {k: milliseconds(s) for k, s in busy.items()})
    result = {
        "workload": name,
        "cuts": cuts[0],
        "iteration_ms": {c: milliseconds(statistics.median(t)) for c, t in times.items()},
        "iteration_ms_least": {c: milliseconds(min(t)) for c, t in times.items()},
        "iteration_ms_most": {c: milliseconds(max(t)) for c, t in times.items()},
        "throughput_ratio": {c: ratio(times, c) for c in contestants if c != "bp, 1 thread"},
        "ddg_stage_ms_per_iteration": stages,
        "rounds": rounds,
        "iterations_per_round": iterations,
    }
    if rank == 0:
        print(json.dumps(result), flush=True)
    return result


def milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 2)


def ratio(times: dict[str, list[float]], contestant: str) -> dict[str, Any]:
    """Throughput against backpropagation with one thread, round by round."""
    ratios = [one / two for one, two in zip(times["bp, 1 thread"], times[contestant], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "median": round(statistics.median(ratios), 3),
        "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    os.environ["OMP_NUM_THREADS"] = "2"  # lets one contestant have both cores
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder,), nprocs=2)
        results = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))
    report = {"environment": environment(), "results": results}
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
