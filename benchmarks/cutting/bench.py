"""What cutting a network costs: seconds of `split` for the networks of tests/zoo.py, K = 2.

Each network is cut in a process of its own, with one thread. The first call also imports the parts
of PyTorch that capture. Run in the repository's root:

    python -m benchmarks.cutting.bench --output benchmarks/cutting/results.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro

import delaygrad as dg
from delaygrad.launch import Launch, run_workers
from delaygrad.partition import cuts_of
from delaygrad.training.run_folder import environment, write_json

TESTS = str(Path(__file__).parents[2] / "tests")


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Do some work; return its result, and its seconds on the wall and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return result, {name: round(value, 3) for name, value in seconds.items()}


def gpt2_of_usual_size() -> tuple[torch.nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(use_cache=False))
    return model.train(), {"input_ids": torch.randint(50257, (2, 64))}


def network(name: str) -> tuple[torch.nn.Module, Any]:
    """Build a network and a sample."""
    if name == "gpt2, 124 million":
        return gpt2_of_usual_size()
    sys.path.insert(0, TESTS)
    from zoo import ZOO

    model = ZOO[name].build()
    return model, ZOO[name].batch(*ZOO[name].sizes)


def measure(name: str) -> dict[str, Any]:
    """Cut one network; after the first call once with its cuts given, and once without."""
    torch.set_num_threads(1)
    model, sample = network(name)
    stages, first = timed(lambda: dg.split(model, 2, sample_inputs=sample))
    cuts = cuts_of(stages)
    _, given = timed(lambda: dg.split(model, 2, sample_inputs=sample, cuts=cuts))
    _, balanced = timed(lambda: dg.split(model, 2, sample_inputs=sample))
    parameters = sum(p.numel() for p in model.parameters())
    seconds = {"first": first, "captured_and_checked": given, "also_balanced": balanced}
    return {"network": name, "parameters": parameters, "cuts": cuts, **seconds}


def main(output: Path, networks: tuple[str, ...] = ()) -> None:
    """Measure networks, print a table, and write the record after each of them.

    Args:
        output: the record, as JSON; rows of other networks stay in it.
        networks: which; by default all.
    """
    sys.path.insert(0, TESTS)
    from zoo import ZOO

    everyone = (*ZOO, "gpt2, 124 million")
    rows = {}
    if output.exists():
        rows = {row["network"]: row for row in json.loads(output.read_text())["networks"]}
    for name in networks or everyone:
        found = run_workers(measure, Launch(num_workers=1), name)[0]
        rows[name] = {**found, "load": round(os.getloadavg()[0], 1)}
        kept = [rows[each] for each in everyone if each in rows]
        write_json(output, {"environment": environment(), "networks": kept})
        seconds = (
            f"{found[part][kind]:6.2f}"
            for part in ("first", "captured_and_checked", "also_balanced")
            for kind in ("wall_s", "cpu_s")
        )
        print(f"{name:20} {' '.join(seconds)}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
