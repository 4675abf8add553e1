"""Peak memory of each stage, measured, against the formula of ``delaygrad.planning.stage_memory``.

K stages run in K processes, past the fill. A peak is the most bytes that PyTorch's allocator had
given out at once, from its profiler, with the parameters; on a GPU
``torch.cuda.max_memory_allocated``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from delaygrad.bench.contest import variables
from delaygrad.launch import Launch, joined, require_gpus, run_workers
from delaygrad.methods import Method
from delaygrad.partition import cuts_of, layer_names, measure, split
from delaygrad.partition.costs import stages_of
from delaygrad.planning.stage_memory import StageMemory, stage_memory
from delaygrad.runtime import DistributedPipeline, LocalPipeline

ITERATIONS = 4  # beyond the fill
# New processes print only errors of torch's profiler and allocator.
_QUIET = {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}

Training: TypeAlias = tuple[nn.Sequential, Tensor, Tensor]
LossFn: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """What is trained, and how; ``make`` returns the network, a batch and its targets."""

    make: Callable[[], Training]
    loss_fn: LossFn
    num_stages: int
    method: Method


def balanced_cuts(case: MemoryCase) -> list[str]:
    """Return the cuts that balance the measured time of the stages."""
    model, inputs, _ = case.make()
    return cuts_of(split(model, case.num_stages, sample_inputs=inputs))


def measure_peaks(case: MemoryCase, cuts: Sequence[str]) -> list[int]:
    """Train each stage in a process of its own, a thread each; return the peaks of each."""
    launch = Launch(num_workers=case.num_stages)
    with variables(**_QUIET):
        found = run_workers(_worker, launch, case, tuple(cuts))
    return [found[k] for k in range(case.num_stages)]


def measure_total_on_gpu(case: MemoryCase, cuts: Sequence[str]) -> int:
    """Train all stages in this process on one GPU; return the most bytes that all held together.

    For machines with fewer GPUs than stages. Less than the sum of the stages' own peaks, as these
    do not come at the same time, and nothing is sent.
    """
    require_gpus(1)
    device = torch.device("cuda")
    model, inputs, targets = case.make()
    stages = [stage.to(device) for stage in split(model, case.num_stages, cuts=cuts)]
    inputs, targets = inputs.to(device), targets.to(device)
    torch.cuda.reset_peak_memory_stats(device)
    pipe = LocalPipeline(stages, case.loss_fn, make_optimizer, method=case.method)
    for _ in range(_iterations(case)):
        pipe.step(inputs, targets)
    pipe.flush()
    return torch.cuda.max_memory_allocated(device)


def predict_peaks(case: MemoryCase, cuts: Sequence[str]) -> list[StageMemory]:
    """Predict these peaks by the formula, from a measurement of single layers."""
    model, inputs, targets = case.make()
    costs = measure(
        model,
        inputs,
        make_optimizer=make_optimizer,
        loss=lambda outputs: case.loss_fn(outputs, targets),
    )
    names = layer_names(model)
    stages = stages_of(costs, [names.index(cut) for cut in cuts])
    return [stage_memory(stage, case.method, k, case.num_stages) for k, stage in enumerate(stages)]


def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimizer of every stage: SGD with momentum, so a buffer for each parameter."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def _worker(case: MemoryCase, cuts: Sequence[str]) -> int:
    """Train one stage."""
    with joined(Launch(num_workers=case.num_stages), torch.device("cpu")) as rank:
        model, inputs, targets = case.make()
        own = split(model, case.num_stages, cuts=cuts)[rank]
        del model
        dist.barrier()
        parameters = sum(parameter.nbytes for parameter in own.parameters())
        return parameters + _peak_of_tensors(own, inputs, targets, case)


def _peak_of_tensors(own: nn.Module, inputs: Tensor, targets: Tensor, case: MemoryCase) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _train(own, inputs, targets, case)
    results: Any = profiler.profiler
    kineto = results.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in kineto if e.name() == "[memory]")
    return int(max(accumulate(num_bytes for _, num_bytes in changes)))


def _train(own: nn.Module, inputs: Tensor, targets: Tensor, case: MemoryCase) -> None:
    for parameter in own.parameters():
        parameter.grad = None
    pipe = DistributedPipeline(own, case.loss_fn, make_optimizer, method=case.method)
    for _ in range(_iterations(case)):
        pipe.step(inputs, targets)
    pipe.flush()


def _iterations(case: MemoryCase) -> int:
    return case.method.schedule.delay(0, case.num_stages) + ITERATIONS
