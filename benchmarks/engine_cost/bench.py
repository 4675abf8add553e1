"""What the engine costs: one stage in a LocalPipeline against a hand-written training loop.

Both contestants train the same network from the same weights on the same batch, in turn, in one
process. Run: python benchmarks/engine_cost/bench.py --output benchmarks/engine_cost/results.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import delaygrad as dg
from delaygrad.models import mlp, resnet
from delaygrad.training.run_folder import environment

ROUNDS = 61

Step = Callable[[], object]


def make_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def contestants(model: nn.Sequential, inputs: torch.Tensor, targets: torch.Tensor) -> list[Step]:
    """Return a step of the hand-written loop and a step of the pipeline."""
    plain = copy.deepcopy(model)
    optimizer = make_sgd(list(plain.parameters()))

    def by_hand() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(plain(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    pipeline = dg.LocalPipeline([model], nn.functional.cross_entropy, make_sgd, method=dg.DDG())
    return [by_hand, lambda: pipeline.step(inputs, targets)]


def seconds(step: Step, iterations: int) -> float:
    start = time.perf_counter()
    for _ in range(iterations):
        step()
    return (time.perf_counter() - start) / iterations


def measure(name: str, model: nn.Sequential, inputs: torch.Tensor) -> dict[str, object]:
    targets = torch.randint(10, (len(inputs),))
    steps = contestants(model, inputs, targets)
    for step in steps:
        seconds(step, 3)
    iterations = max(1, round(0.1 / seconds(steps[0], 3)))
    times: list[list[float]] = [[], []]
    for round_index in range(ROUNDS):
        order = (0, 1) if round_index % 2 == 0 else (1, 0)
        for index in order:
            times[index].append(seconds(steps[index], iterations))
    ratios = sorted(pipe / hand for hand, pipe in zip(*times, strict=True))
    result = {
        "workload": name,
        "by_hand_ms": round(1e3 * statistics.median(times[0]), 3),
        "pipeline_ms": round(1e3 * statistics.median(times[1]), 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)[::2]],
        "rounds": ROUNDS,
        "iterations_per_round": iterations,
    }
    print(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    torch.manual_seed(0)
    torch.set_num_threads(1)

    def images(batch: int) -> torch.Tensor:
        return torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)

    def net(depth: int) -> nn.Sequential:
        return resnet(depth, num_classes=10).to(memory_format=torch.channels_last)

    flat = mlp(sample_shape=(3, 32, 32), num_classes=10)
    results = [
        measure("mlp 3072-128-128-128-10, batch 32", flat, images(32)),
        measure("resnet20, batch 32", net(20), images(32)),
        measure("resnet56, batch 32", net(56), images(32)),
    ]
    report = {"threads": 1, "environment": environment(), "results": results}
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
