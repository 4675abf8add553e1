"""What averaging over replicas costs: 2 stages x 2 replicas, during the backward or after it.

Layers sleep instead of computing, so that four processes fit on two cores; their gradients are
real, and travel over the loopback. The two ways take turns. Run:

    python -m benchmarks.replicas.bench --output benchmarks/replicas/results.json
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import delaygrad as dg
from benchmarks.alternating import alternate, write
from delaygrad.launch import Launch, joined, run_workers

STAGES, REPLICAS = 2, 2
LAYERS, WIDTH = 6, 1024
FORWARD_S, BACKWARD_S = 0.02, 0.04
ITERATIONS = 10


class Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        time.sleep(FORWARD_S)
        return inputs * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        time.sleep(BACKWARD_S)
        return grad


class Layer(nn.Linear):
    """Four megabytes of gradient."""

    def forward(self, inputs: Tensor) -> Tensor:
        return Sleep.apply(super().forward(inputs))


def worker(launch: Launch, rounds: int) -> dict[str, Any]:
    with joined(launch, torch.device("cpu")):
        mesh = init_device_mesh("cpu", (STAGES, REPLICAS), mesh_dim_names=("pp", "dp"))
        torch.manual_seed(0)
        model = nn.Sequential(*(Layer(WIDTH, WIDTH) for _ in range(STAGES * LAYERS)))
        stage = dg.split(model, STAGES, cuts=[str(LAYERS)])[mesh.get_local_rank("pp")]
        pipe = dg.DistributedPipeline(
            stage, nn.functional.mse_loss, lambda p: torch.optim.SGD(p, lr=0.01), mesh=mesh
        )
        batch = torch.randn(2, WIDTH), torch.zeros(2, WIDTH)
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
        "gradient_bytes": 4 * LAYERS * (WIDTH + 1) * WIDTH,
        "forward_ms": 1e3 * LAYERS * FORWARD_S,
        "backward_ms": 1e3 * LAYERS * BACKWARD_S,
    }
    write(output, load=os.getloadavg(), **about, results=found)


if __name__ == "__main__":
    tyro.cli(main)
