"""Peak memory of each stage, measured, against the formula of ``delaygrad.planning.stage_memory``.

K stages run in K processes, a thread each, past the fill; what is measured, and how:
``delaygrad.bench.memory_peaks``.

Run: python -m benchmarks.memory.bench --output benchmarks/memory/results.json
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

import delaygrad as dg
from benchmarks.alternating import write
from delaygrad.bench.memory_peaks import MemoryCase, balanced_cuts, measure_peaks, predict_peaks
from delaygrad.bench.workload import images
from delaygrad.models import gpt
from delaygrad.training.evaluation import cross_entropy

BF16 = torch.bfloat16
METHODS = [
    dg.DDG(),
    dg.DDG(slack=1),
    dg.DDG(micro_batches=4),
    dg.DDG(recompute=True),
    dg.DDG(stash_dtype=BF16),
]
CASES = [
    ("resnet56 b64", 2, METHODS[0]),
    *(("resnet56 b64", 4, method) for method in METHODS),
    *(("gpt 8x128", 4, method) for method in METHODS),
]


def network(workload: str) -> tuple[nn.Module, Tensor, Tensor]:
    if workload.startswith("resnet56"):
        found = images(56, batch_size=64)
        return found.model(), *found.batch()
    torch.manual_seed(0)
    tokens = torch.randint(64, (8, 128))
    model = gpt(vocabulary_size=64, context_length=128, width=256, num_layers=8, num_heads=8)
    return model, tokens, torch.randint(64, (8, 128))


def run(named: tuple[str, int, dg.Method]) -> dict[str, Any]:
    workload, num_stages, method = named
    case = MemoryCase(
        make=partial(network, workload),
        loss_fn=cross_entropy,
        num_stages=num_stages,
        method=method,
    )
    cuts = balanced_cuts(case)
    measured, predicted = measure_peaks(case, cuts), predict_peaks(case, cuts)
    stages = [
        {
            "predicted_mib": mib(memory.total_bytes),
            "tensors_mib": mib(measured[k]),
            "tensors / predicted": round(measured[k] / memory.total_bytes, 3),
            "parts_mib": {name: mib(size) for name, size in vars(memory).items()},
        }
        for k, memory in enumerate(predicted)
    ]
    return {"case": f"{workload}, K={num_stages}, {method!r}", "cuts": cuts, "stages": stages}


def mib(num_bytes: int) -> float:
    return round(num_bytes / 2**20, 1)


def main(output: Path) -> None:
    """Measure all cases, with one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    write(output, results=[run(case) for case in CASES])


if __name__ == "__main__":
    tyro.cli(main)
