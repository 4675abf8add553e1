"""Peak memory of each stage, measured, against the formula of ``delaygrad.partition.memory``.

K stages run in K processes, a thread each, past the fill; what is measured, and how:
``delaygrad.bench.memory``.

Run: python benchmarks/memory/bench.py --output benchmarks/memory/results.json
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import delaygrad as dg
from delaygrad.bench.memory import MemoryCase, balanced_cuts, measure_peaks, predict_peaks
from delaygrad.models import gpt, resnet
from delaygrad.training.evaluation import cross_entropy
from delaygrad.training.run_folder import environment


@dataclass(frozen=True)
class Case:
    """A workload, its stages and a method."""

    workload: str
    num_stages: int
    method: dg.DDG

    @property
    def name(self) -> str:
        return f"{self.workload}, K={self.num_stages}, {self.method!r}"


BF16 = torch.bfloat16
METHODS = [
    dg.DDG(),
    dg.DDG(slack=1),
    dg.DDG(micro_batches=4),
    dg.DDG(recompute=True),
    dg.DDG(stash_dtype=BF16),
]
CASES = [
    *(Case("resnet56 b64", 2, method) for method in METHODS[:1]),
    *(Case("resnet56 b64", 4, method) for method in METHODS),
    *(Case("gpt 8x128", 4, method) for method in METHODS),
]


def network(workload: str) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    if workload.startswith("resnet56"):
        images = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last)
        model = resnet(56, num_classes=10).to(memory_format=torch.channels_last)
        return model, images, torch.randint(10, (64,))
    tokens = torch.randint(64, (8, 128))
    model = gpt(vocabulary_size=64, context_length=128, width=256, num_layers=8, num_heads=8)
    return model, tokens, torch.randint(64, (8, 128))


def run(case: Case) -> dict[str, Any]:
    memory_case = MemoryCase(
        make=partial(network, case.workload),
        loss_fn=cross_entropy,
        num_stages=case.num_stages,
        method=case.method,
        resident=True,
    )
    cuts = balanced_cuts(memory_case)
    measured = measure_peaks(memory_case, cuts)
    predicted = predict_peaks(memory_case, cuts)
    stages = [
        {
            "predicted_mib": mib(memory.total_bytes),
            "tensors_mib": mib(measured[k].tensors_bytes),
            "tensors / predicted": round(measured[k].tensors_bytes / memory.total_bytes, 3),
            "resident_mib": mib(measured[k].resident_bytes),
            "parts_mib": {name: mib(size) for name, size in vars(memory).items()},
        }
        for k, memory in enumerate(predicted)
    ]
    return {"case": case.name, "cuts": cuts, "stages": stages}


def mib(num_bytes: int) -> float:
    return round(num_bytes / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    results = []
    for case in CASES:
        results.append(run(case))
        print(json.dumps(results[-1]), flush=True)
    report = {"environment": environment(), "results": results}
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
