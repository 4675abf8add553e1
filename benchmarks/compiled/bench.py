"""What compile=True brings: two stages in one process, compiled against not compiled, in turn.

Time is that of the process, since other processes may use the machine.

python -m benchmarks.compiled.bench --output benchmarks/compiled/results.json
"""

from __future__ import annotations

import os
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

import delaygrad as dg
from benchmarks.alternating import alternate, write
from delaygrad.bench.config import ContestConfig
from delaygrad.bench.workload import Workload, load_workload
from delaygrad.models import gpt
from delaygrad.training.evaluation import cross_entropy

WIDTH, LENGTH, VOCABULARY = 256, 64, 65


def small_gpt() -> Workload:
    """A GPT whose code is compiled in a minute."""

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        text = torch.randint(VOCABULARY, (8, LENGTH + 1))
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    return Workload(
        description=f"GPT, 2 blocks of width {WIDTH}, 8 x {LENGTH} tokens",
        make_model=partial(
            gpt,
            vocabulary_size=VOCABULARY,
            context_length=LENGTH,
            width=WIDTH,
            num_layers=2,
            num_heads=4,
        ),
        make_batch=batch,
        loss_fn=cross_entropy,
        make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
    )


def contest(workload: Workload, iterations: int, rounds: int) -> dict[str, Any]:
    """Train the same two stages, compiled and not, in turn."""
    cuts = [None]
    pipes, first_s = {}, {}
    inputs, targets = workload.batch()
    for name, compiled in (("eager", False), ("compiled", True)):
        stages = dg.split(
            workload.model(), 2, sample_inputs=inputs, cuts=cuts[-1], compile=compiled
        )
        pipe = dg.LocalPipeline(stages, workload.loss_fn, workload.make_optimizer)
        cuts.append(pipe.cuts)
        start = time.perf_counter()
        for _ in range(3):  # past the fill; the second and third find the code
            pipe.step(inputs, targets)
        first_s[f"{name}_first_three_s"] = round(time.perf_counter() - start, 2)
        pipes[name] = pipe

    def train(pipe: dg.LocalPipeline, count: int) -> None:
        for _ in range(count):
            pipe.step(inputs, targets)

    ways = {name: partial(train, pipe) for name, pipe in pipes.items()}
    found = alternate(ways, rounds=rounds, iterations=iterations, now=time.process_time)
    return {"workload": workload.description, "cuts": cuts[-1], **first_s, **found}


def main(output: Path | None = None, rounds: int = 9, iterations: int = 4) -> None:
    """Measure and print all workloads.

    Args:
        output: write the record here, as JSON.
        rounds: turns of each way.
        iterations: of a turn.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # PyTorch's own
    named = [load_workload(ContestConfig(workload=name)) for name in ("mlp", "resnet8")]
    rows = []
    for workload in (small_gpt(), *named):
        rows.append(contest(workload, iterations, rounds))
        write(output or Path(os.devnull), threads=1, load=os.getloadavg(), contests=rows)


if __name__ == "__main__":
    tyro.cli(main)
