"""What the engine's features cost a run that does not use them.

A copy of the package is made for each feature, without the lines by which the engine looks whether
the feature is used. All copies train the same network from the same weights on the same batch, in
turn, in one process. What counts is the process's CPU time. A copy without any change is the
control. Run:

    python -m benchmarks.engine_cost.unused --output benchmarks/engine_cost/unused.json
"""

from __future__ import annotations

import copy
import importlib
import math
import os
import random
import re
import statistics
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

import delaygrad
from benchmarks.alternating import Work, seconds, write
from benchmarks.engine_cost.features import FEATURES, Lines
from delaygrad.models import mlp


def without(name: str, lines: Lines, folder: Path) -> Any:
    """Import a copy of the package under another name, with other lines.

    Raises:
        ValueError: the package does not have these lines exactly once; adapt ``FEATURES``.
    """
    package = re.sub(r"\W+", "_", f"without_{name}")
    source, target = Path(delaygrad.__file__).parent, folder / package
    texts = {path.relative_to(source): path.read_text() for path in source.rglob("*.py")}
    for file, old, new in lines:
        if texts[Path(file)].count(old) != 1:
            raise ValueError(f"not found once (feature: {name}, file: {file}, lines: {old!r})")
        texts[Path(file)] = texts[Path(file)].replace(old, new)
    for path, text in texts.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(re.sub(r'(?<!")\bdelaygrad\b', package, text))
    return importlib.import_module(package)


def make_work(package: Any, model: nn.Sequential, num_stages: int) -> Work:
    """Return iterations of a pipeline of a copy of the package."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))

    def make_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)

    cuts = ["linear3"] if num_stages > 1 else []
    stages = package.split(copy.deepcopy(model), num_stages, cuts=cuts)
    pipe = package.LocalPipeline(stages, nn.functional.cross_entropy, make_sgd)

    def work(iterations: int) -> None:
        for _ in range(iterations):
            pipe.step(inputs, targets)

    return work


def median_interval(values: list[float]) -> list[float]:
    """Return the order statistics between which the median lies with at least 95 %."""
    values, n = sorted(values), len(values)
    outside, low = 0.0, 0
    while low < n // 2 and outside + math.comb(n, low) / 2**n <= 0.025:
        outside += math.comb(n, low) / 2**n
        low += 1
    return [values[max(0, low - 1)], values[n - max(1, low)]]


def measure(works: dict[str, Work], rounds: int, iterations: int) -> dict[str, float]:
    """Let all take turns; return the median ratio of the engine to each copy, round by round."""
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for number in range(-3, rounds):  # the first three warm up
        turn = number % len(names)
        for name in (names[turn:] + names[:turn])[:: 1 if number % 2 else -1]:
            spent = seconds(works[name], iterations, time.process_time)
            if number >= 0:
                times[name].append(spent)
    engine = times.pop("engine")
    return {
        name: statistics.median(a / b for a, b in zip(engine, own, strict=True))
        for name, own in times.items()
    }


def in_one_process(rounds: int, iterations: int) -> dict[int, dict[str, float]]:
    """Measure an MLP whose iteration takes two milliseconds, with one thread, as 1 and 2 stages."""
    torch.set_num_threads(1)
    model = mlp(sample_shape=(3, 32, 32), num_classes=10)
    with tempfile.TemporaryDirectory(prefix="engine-cost-") as folder:
        sys.path.insert(0, folder)
        packages = {n: without(n, lines, Path(folder)) for n, lines in FEATURES.items()}
        names = {"engine": delaygrad, **packages}
        random.shuffle(order := list(names))  # memory is laid out anew
        return {
            k: measure({n: make_work(names[n], model, k) for n in order}, rounds, iterations)
            for k in (1, 2)
        }


def main(output: Path, processes: int = 12, rounds: int = 30, iterations: int = 5) -> None:
    """Measure in several processes, one after the other: where memory lies costs a per cent too."""
    context, found = get_context("spawn"), []
    for _ in range(processes):
        with context.Pool(1) as pool:
            found.append(pool.apply(in_one_process, (rounds, iterations)))
    results = [
        {
            "stages": k,
            "feature": name,
            "cost_percent": round(100 * (statistics.median(ratios) - 1), 2),
            "interval_percent": [round(100 * (end - 1), 2) for end in median_interval(ratios)],
        }
        for k in (1, 2)
        for name in FEATURES
        for ratios in [[of_process[k][name] for of_process in found]]
    ]
    load = [round(each, 1) for each in os.getloadavg()]
    settings = {"processes": processes, "rounds": rounds, "iterations": iterations}
    write(output, threads=1, load_average=load, **settings, results=results)


if __name__ == "__main__":
    tyro.cli(main)
