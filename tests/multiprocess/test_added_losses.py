"""Losses of middle stages, extras and several optimizers: ranks give what one process gives."""

from __future__ import annotations

from typing import Any

import torch
from exact import assert_same
from networks import CLASSES, batches
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg

METHODS = [
    dg.DDG(),
    dg.DDG(slack=1, micro_batches=3, recompute=True),
    dg.FDG(),
    dg.DNI(synthesizer_width=8),
]


class Balanced(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.tanh(super().forward(x))
        dg.add_loss(0.5 * out.square().mean())
        return out


def build_stages() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Balanced(6, 6), nn.Sequential(Balanced(6, 6), Balanced(6, 6)), nn.Linear(6, CLASSES)]


def loss_fn(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return cross_entropy(outputs, targets), outputs.argmax(1)


def two_optimizers(params: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    matrices, others = [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]


def drive(pipe: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"losses": [], "added": [], "extras": []}
    for x, y in batches(9, (6,), sizes=(7, 6, 5)):
        told["losses"].append(pipe.step(x, y))
        told["added"].append(pipe.added_losses)
        told["extras"].append(pipe.extras)
    pipe.flush()
    told["parameters"] = [p.detach() for module in pipe.modules for p in module.parameters()]
    optimizers = [optimizer.state_dict() for optimizer in pipe.optimizers]
    return {**told, "optimizers": optimizers}


def on_rank(rank: int, world_size: int) -> list[dict[str, Any]]:
    told = []
    for method in METHODS:
        stage = build_stages()[rank]
        with dg.DistributedPipeline(
            stage, loss_fn, two_optimizers, method=method, timeout_s=20
        ) as pipe:
            told.append(drive(pipe))
    return told


def test_ranks_add_losses_as_one_process_does() -> None:
    ranks = run_ranks(on_rank, 3, timeout_s=100)
    for index, method in enumerate(METHODS):
        torch.manual_seed(0)
        expected = drive(dg.LocalPipeline(build_stages(), loss_fn, two_optimizers, method=method))
        told = [of_rank[index] for of_rank in ranks]
        for name in ("losses", "extras"):
            assert_same(told[-1][name], expected[name], name)
        per_stage = [[row[0] for row in of_rank["added"]] for of_rank in told]
        assert_same([list(row) for row in zip(*per_stage, strict=True)], expected["added"])
        assert any(added is not None for added in per_stage[1]), "nothing was added"
        for name in ("parameters", "optimizers"):
            assert_same([value for of_rank in told for value in of_rank[name]], expected[name])
