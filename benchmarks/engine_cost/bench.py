"""What the engine costs: one stage in a LocalPipeline against a hand-written training loop.

Both train the same network from the same weights on the same batch, in turn, in one process. What
counts is the process's CPU time. Run:

    python -m benchmarks.engine_cost.bench --output benchmarks/engine_cost/results.json
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

import delaygrad as dg
from benchmarks.alternating import alternate, seconds, write
from delaygrad.models import mlp, resnet


def make_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def measure(name: str, model: nn.Sequential, rounds: int) -> dict[str, Any]:
    inputs = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
    targets = torch.randint(10, (32,))
    plain = copy.deepcopy(model)
    optimizer = make_sgd(list(plain.parameters()))
    pipeline = dg.LocalPipeline([model], nn.functional.cross_entropy, make_sgd, method=dg.DDG())

    def by_hand(iterations: int) -> None:
        for _ in range(iterations):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(inputs), targets).backward()
            optimizer.step()

    def in_pipeline(iterations: int) -> None:
        for _ in range(iterations):
            pipeline.step(inputs, targets)

    ways = {"by_hand": by_hand, "pipeline": in_pipeline}
    for work in ways.values():
        work(3)
    iterations = max(1, round(0.02 / seconds(by_hand, 3, time.process_time)))
    found = alternate(ways, rounds=rounds, iterations=iterations, now=time.process_time)
    return {"workload": name, **found}


def main(output: Path, rounds: int = 201) -> None:
    """Measure three networks, with one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    networks = {"mlp 3072-128-128-128-10": mlp(sample_shape=(3, 32, 32), num_classes=10)}
    for depth in (20, 56):
        network = resnet(depth, num_classes=10).to(memory_format=torch.channels_last)
        networks[f"resnet{depth}"] = network
    found = [measure(f"{name}, batch 32", net, rounds) for name, net in networks.items()]
    write(output, threads=1, load_average=round(os.getloadavg()[0], 1), results=found)


if __name__ == "__main__":
    tyro.cli(main)
