"""Show that a refactoring changes no computed bit: the same runs, at two commits, on one machine.

    python benchmarks/unchanged/check.py --against COMMIT

trains each run of ``RUNS`` with this checkout's sources and with those of COMMIT, and compares a
digest of parameters, buffers and losses. Digests depend on the processor, so both are computed
here. ``results.json`` holds those of one machine, for the record (``--output``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
NUM_BATCHES, CLASSES = 9, 3

METHODS = {
    "bp": "dg.BP()",
    "bp-m2": "dg.BP(micro_batches=2)",
    "ddg": "dg.DDG()",
    "ddg-slack": "dg.DDG(slack=1)",
    "ddg-m2": "dg.DDG(micro_batches=2)",
    "ddg-m3-slack": "dg.DDG(micro_batches=3, slack=1)",
    "ddg-recompute": "dg.DDG(recompute=True)",
    "ddg-m2-recompute": "dg.DDG(micro_batches=2, recompute=True)",
    "ddg-stash16": "dg.DDG(stash_dtype=torch.bfloat16)",
    "ddg-boundary16": "dg.DDG(boundary_dtype=torch.bfloat16)",
    "live": "dg.DDG(weights='live')",
    "live-m2": "dg.DDG(weights='live', micro_batches=2)",
    "dni": "dg.DNI(synthesizer_width=8, synthesizer_kernel=3)",
    "cdni": "dg.DNI(num_classes=3, synthesizer_width=8, synthesizer_kernel=3)",
}
RUNS = [
    f"{method} K={num_stages} {optimizer} {way}"
    for method in METHODS
    for num_stages, optimizer, way in (
        (1, "sgd", "local"),
        (2, "sgd", "local"),
        (2, "sgd", "distributed"),
        (3, "adam", "local"),
        (3, "sgd", "resumed"),
        (3, "adam", "distributed"),
    )
]


def network() -> list[Any]:
    """Return three pieces with convolutions, BatchNorm, dropout and in-place layers."""
    from torch import nn

    return [
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Dropout(0.2), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, CLASSES)),
    ]


def stages_of(num_stages: int) -> list[Any]:
    """Return the network in one, two or three stages."""
    from torch import nn

    pieces = network()
    first = 4 - num_stages
    return [nn.Sequential(*pieces[:first]), *pieces[first:]]


def batches() -> list[tuple[Any, Any]]:
    """Return the data; one batch is shorter."""
    import torch

    generator = torch.Generator().manual_seed(5)
    sizes = [6 if index != 4 else 4 for index in range(NUM_BATCHES)]
    return [
        (
            torch.randn(size, 2, 4, 4, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for size in sizes
    ]


def make_optimizer(name: str) -> Any:
    """Return a factory of a stage's optimizer."""
    import torch

    if name == "adam":
        return lambda params: torch.optim.Adam(params, lr=0.01)
    return lambda params: torch.optim.SGD(
        params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


def digest(values: list[Any]) -> str:
    """Digest tensors by their bytes."""
    import torch

    found = hashlib.sha256()
    for value in values:
        found.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def train(pipe: Any, data: list[tuple[Any, Any]]) -> list[Any]:
    """Return the losses that this process sees."""
    return [loss for x, y in data if (loss := pipe.step(x.clone(), y.clone())) is not None]


def local_run(method: str, num_stages: int, optimizer: str, resumed: bool) -> str:
    """Train in this process, with a stop and a new pipeline in the middle if asked."""
    import torch

    import delaygrad as dg

    def build() -> Any:
        torch.manual_seed(0)
        return dg.LocalPipeline(
            stages_of(num_stages),
            torch.nn.functional.cross_entropy,
            make_optimizer(optimizer),
            method=eval(METHODS[method], {"dg": dg, "torch": torch}),
        )

    data, pipe, losses = batches(), build(), []
    if resumed:
        losses = train(pipe, data[:5])
        state, pipe = pipe.state_dict(), build()
        pipe.load_state_dict(state)
        data = data[5:]
    losses += train(pipe, data)
    pipe.flush()
    tensors = [value for stage in pipe.stages for value in stage.state_dict().values()]
    return digest([*losses, *tensors])


def rank_run(rank: int, world_size: int, store: str, method: str, optimizer: str, out: Any) -> None:
    """Train one stage, as a rank."""
    import torch
    import torch.distributed as dist

    import delaygrad as dg

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    torch.manual_seed(0)
    stages = stages_of(world_size)
    with dg.DistributedPipeline(
        stages[rank],
        torch.nn.functional.cross_entropy,
        make_optimizer(optimizer),
        method=eval(METHODS[method], {"dg": dg, "torch": torch}),
    ) as pipe:
        losses = train(pipe, batches())
        pipe.flush()
        out.put((rank, digest([*losses, *pipe.stage.state_dict().values()])))
    dist.destroy_process_group()


def distributed_run(method: str, num_stages: int, optimizer: str) -> str:
    """Train with a process for each stage."""
    import torch.multiprocessing as mp

    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "delaygrad"])
    with tempfile.TemporaryDirectory() as folder:
        queue = context.SimpleQueue()
        arguments = (num_stages, f"file://{folder}/store", method, optimizer, queue)
        mp.start_processes(rank_run, arguments, nprocs=num_stages, start_method="forkserver")
        found = sorted(queue.get() for _ in range(num_stages))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def compute(runs: list[str]) -> dict[str, str]:
    """Return the digest of each run, with the sources that are on the path."""
    import torch

    torch.set_num_threads(1)
    found = {}
    for run in runs:
        method, stages, optimizer, way = run.split()
        num_stages = int(stages[2:])
        if way == "distributed":
            found[run] = distributed_run(method, num_stages, optimizer)
        else:
            found[run] = local_run(method, num_stages, optimizer, way == "resumed")
        print(f"{found[run][:12]}  {run}", file=sys.stderr, flush=True)
    return found


def computed_with(sources: Path, runs: list[str]) -> dict[str, str]:
    """Return the same, with the sources of a folder, in a process of its own."""
    command = [sys.executable, str(HERE), "--compute", *runs]
    environment = {**os.environ, "PYTHONPATH": str(sources)}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    digests: dict[str, str] = json.loads(found.stdout)
    return digests


def at_commit(commit: str, runs: list[str]) -> dict[str, str]:
    """Return the same, with the sources of a commit."""
    git = ["git", "-C", str(HERE.parent)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*git, "worktree", "add", "--detach", folder, commit], check=True)
        try:
            return computed_with(Path(folder, "src"), runs)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", folder], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", help="the commit to compare with")
    parser.add_argument("--output", type=Path, help="write the digests here, as JSON")
    parser.add_argument("--only", default="", help="runs whose name holds this text")
    parser.add_argument("--compute", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compute:
        print(json.dumps(compute(arguments.compute)))
        return 0
    runs = [run for run in RUNS if arguments.only in run]
    here = computed_with(HERE.parents[2] / "src", runs)
    if arguments.output:
        arguments.output.write_text(json.dumps(here, indent=1) + "\n", encoding="utf-8")
    if not arguments.against:
        return 0
    there = at_commit(arguments.against, runs)
    changed = [run for run in runs if here[run] != there[run]]
    print(f"{len(runs) - len(changed)} of {len(runs)} runs are unchanged")
    print("".join(f"changed: {run}\n" for run in changed), end="")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
