"""What averaging over replicas costs: 2 stages x 2 replicas, during the backward or after it.

Layers sleep instead of computing, so that four processes fit on two cores; their gradients are
real, and travel over the loopback. The two ways take turns. Run:

    python -m benchmarks.replicas.bench --output benchmarks/replicas/results.json
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import delaygrad as dg
from benchmarks.alternating import alternate, write
from delaygrad.bench.sleeping import SleepingLayer
from delaygrad.launch import Launch, joined, run_workers

STAGES, REPLICAS = 2, 2
LAYERS, WIDTH, BATCH_SIZE = 6, 1024, 2
FORWARD_S, BACKWARD_S = 0.02, 0.04
ITERATIONS = 10


def layers() -> list[nn.Module]:
    """Each linear layer has four megabytes of gradient; the one after it takes the time."""
    return [
        layer
        for _ in range(STAGES * LAYERS)
        for layer in (
            nn.Linear(WIDTH, WIDTH),
            SleepingLayer(FORWARD_S / BATCH_SIZE, BACKWARD_S / BATCH_SIZE),
        )
    ]


def worker(launch: Launch, rounds: int) -> dict[str, Any]:
    with joined(launch, torch.device("cpu")):
        mesh = init_device_mesh("cpu", (STAGES, REPLICAS), mesh_dim_names=("pp", "dp"))
        torch.manual_seed(0)
        cuts = [str(2 * LAYERS)]
        stage = dg.split(nn.Sequential(*layers()), STAGES, cuts=cuts)[mesh.get_local_rank("pp")]
        pipe = dg.DistributedPipeline(
            stage, nn.functional.mse_loss, lambda p: torch.optim.SGD(p, lr=0.01), mesh=mesh
        )
        batch = torch.randn(BATCH_SIZE, WIDTH), torch.zeros(BATCH_SIZE, WIDTH)
        waited: dict[str, list[float]] = {"after": [], "during": []}

        def way(name: str) -> Callable[[int], None]:
            def train(iterations: int) -> None:
                for each in pipe._workers.values():
                    each.stage._average._overlaps = name == "during"  # type: ignore[union-attr]
                before = pipe.stage_seconds()[0]["average"]
                for _ in range(iterations):
                    pipe.step(*batch)
                waited[name].append((pipe.stage_seconds()[0]["average"] - before) / iterations)

            return train

        ways = {name: way(name) for name in waited}
        for train in ways.values():
            train(3)
        found = alternate(ways, rounds=rounds, iterations=ITERATIONS)
        told = pipe._share(
            {name: sorted(values)[len(values) // 2] for name, values in waited.items()}
        )
        pipe.flush()
        pipe.close()
    for name in waited:  # of the first replica
        found[f"{name}_average_ms"] = [round(1e3 * told[k][name], 2) for k in range(STAGES)]
    return found


def main(output: Path, rounds: int = 11) -> None:
    """Measure."""
    os.environ["OMP_NUM_THREADS"] = "1"
    launch = Launch(num_workers=STAGES * REPLICAS)
    found = run_workers(worker, launch, launch, rounds)[0]
    about = {
        "stages": STAGES,
        "replicas": REPLICAS,
        "gradient_bytes": 4 * LAYERS * ((WIDTH + 1) * WIDTH + 1),
        "forward_ms": 1e3 * LAYERS * FORWARD_S,
        "backward_ms": 1e3 * LAYERS * BACKWARD_S,
    }
    write(output, load=os.getloadavg(), **about, results=found)


if __name__ == "__main__":
    tyro.cli(main)
