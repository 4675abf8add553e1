"""Peak memory of each stage, measured, against the formula of ``delaygrad.partition.memory``.

K stages run in K processes, a thread each, past the fill. Two measurements, in two runs:

    tensors    the most bytes that PyTorch's allocator had given out at once, from its profiler,
               with the parameters; what torch.cuda.max_memory_allocated tells on a GPU
    resident   the most memory of the process (VmHWM of Linux) beyond what it held when everything
               was imported and a small network had been trained: with malloc's losses and the
               working memory of the convolutions

Run: python benchmarks/memory/bench.py --output benchmarks/memory/results.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import delaygrad as dg
from delaygrad.models import gpt, resnet
from delaygrad.partition import cuts_of, layer_names, measure
from delaygrad.partition.costs import join
from delaygrad.partition.memory import StageMemory, Waiting, stage_memory
from delaygrad.runtime.launch import Launch, joined, run_workers
from delaygrad.training.evaluation import cross_entropy
from delaygrad.training.run_folder import environment

ITERATIONS = 4


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


def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def network(workload: str) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    if workload.startswith("resnet56"):
        images = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last)
        model = resnet(56, num_classes=10).to(memory_format=torch.channels_last)
        return model, images, torch.randint(10, (64,))
    tokens = torch.randint(64, (8, 128))
    model = gpt(vocabulary_size=64, context_length=128, width=256, num_layers=8, num_heads=8)
    return model, tokens, torch.randint(64, (8, 128))


def kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise OSError(f"no {field} in /proc/self/status; this benchmark needs Linux")


def worker(case: Case, cuts: list[str]) -> tuple[int, int]:
    """Train one stage; return the peaks of its tensors and of its process, in bytes."""
    with joined(Launch(num_workers=case.num_stages), torch.device("cpu")) as rank:
        train_something_small()
        model, inputs, targets = network(case.workload)
        own = dg.split(model, case.num_stages, cuts=cuts)[rank]
        del model
        parameters = sum(parameter.nbytes for parameter in own.parameters())
        dist.barrier()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = 1024 * kilobytes("VmRSS") - parameters
        resident = peak_resident(own, inputs, targets, case) - before
        dist.barrier()
        return parameters + peak_of_tensors(own, inputs, targets, case), resident


def train_something_small() -> None:
    """Let PyTorch import and allocate what it does on first use."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    pipe = dg.LocalPipeline([model], lambda out, _: out.mean(), make_optimizer)
    for _ in range(3):
        pipe.step(torch.randn(4, 3, 8, 8), None)


def peak_resident(own: nn.Module, inputs: Tensor, targets: Tensor, case: Case) -> int:
    train(own, inputs, targets, case)
    return 1024 * kilobytes("VmHWM")


def peak_of_tensors(own: nn.Module, inputs: Tensor, targets: Tensor, case: Case) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(own, inputs, targets, case)
    kineto = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in kineto if e.name() == "[memory]")
    return max(accumulate(num_bytes for _, num_bytes in changes))


def train(own: nn.Module, inputs: Tensor, targets: Tensor, case: Case) -> None:
    for parameter in own.parameters():
        parameter.grad = None
    pipe = dg.DistributedPipeline(own, cross_entropy, make_optimizer, method=case.method)
    for _ in range(case.method.schedule.delay(0, case.num_stages) + ITERATIONS):
        pipe.step(inputs, targets)
    pipe.flush()


def predict(case: Case, cuts: list[str]) -> list[StageMemory]:
    model, inputs, targets = network(case.workload)
    costs = measure(
        model, inputs, make_optimizer=make_optimizer, loss=lambda out: cross_entropy(out, targets)
    )
    names = layer_names(model)
    bounds = [0, *(names.index(cut) for cut in cuts), len(names)]
    schedule, last = case.method.schedule, case.num_stages - 1
    between = [schedule.messages_under_way(k, case.num_stages) for k in range(last)]
    under_way = [0, *between, 0]
    return [
        stage_memory(
            join(costs[bounds[k] : bounds[k + 1]]),
            Waiting(
                lag=schedule.lag(k, case.num_stages),
                micro_batches=schedule.micro_batches,
                recompute=case.method.recompute,
                rounded=case.method.stash_dtype is not None,
                sends_below=under_way[k],
                sends_above=under_way[k + 1],
            ),
            is_last=k == case.num_stages - 1,
        )
        for k in range(case.num_stages)
    ]


def run(case: Case) -> dict[str, Any]:
    model, inputs, _ = network(case.workload)
    cuts = cuts_of(dg.split(model, case.num_stages, sample_inputs=inputs))
    del model
    measured = run_workers(worker, Launch(num_workers=case.num_stages), case, cuts)
    predicted = predict(case, cuts)
    stages = [
        {
            "predicted_mib": mib(memory.total_bytes),
            "tensors_mib": mib(measured[k][0]),
            "tensors / predicted": round(measured[k][0] / memory.total_bytes, 3),
            "resident_mib": mib(measured[k][1]),
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
