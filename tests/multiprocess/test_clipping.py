"""Clipping over all stages and loss scaling: one rank per stage gives what one process gives."""

from __future__ import annotations

import math
from typing import Any

import torch
from exact import assert_same
from networks import OPTIMIZERS, batches, mlp
from ranks import run_ranks
from saved import from_bytes, to_bytes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.methods.axes import ClipNorm

STOP = 5
CASES: list[tuple[dg.Method, dict[str, Any]]] = [
    (dg.DDG(), {"clip_norm": 0.4}),
    (dg.DDG(), {"clip_norm": ClipNorm(0.4, wait=True)}),
    (dg.Lookahead(micro_batches=3), {"clip_norm": 0.4}),
    (dg.FDG(), {"clip_norm": 0.4}),
    (dg.BP(micro_batches=2), {"clip_norm": ClipNorm(0.4, wait=True)}),
    (dg.DNI(num_classes=5, synthesizer_width=8), {"clip_norm": 0.4}),
    (dg.DDG(), {"clip_norm": 0.4, "loss_scale": 2.0**10}),
    (dg.DDG(slack=1, micro_batches=2), {"loss_scale": 2.0**10}),
]


def build_stages(options: dict[str, Any]) -> list[nn.Module]:
    torch.manual_seed(0)
    factor = math.inf if "loss_scale" in options else 1e3
    blocks = mlp(6)
    stages: list[nn.Module] = [nn.Sequential(*blocks[k : k + 2]) for k in (0, 2, 4)]
    for parameter in stages[1].parameters():
        calls = [0]

        def spike(gradient: Tensor, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return gradient * factor if calls[0] == 4 else gradient

        parameter.register_hook(spike)
    return stages


def drive(pipe: Any, start: int = 0) -> dict[str, Any]:
    told: dict[str, Any] = {"losses": []}
    for index, (x, y) in enumerate(batches(11, (6,), sizes=(6,))):
        if index == STOP:
            told["saved"] = to_bytes(pipe.state_dict())
        if index == 8:
            pipe.flush()
        if index >= start:
            told["losses"].append(pipe.step(x, y))
    pipe.flush()
    return {**told, "end": to_bytes(pipe.state_dict()), "skipped": pipe.skipped}


def stages_of(state: bytes) -> dict[str, Any]:
    stages: dict[str, Any] = from_bytes(state)["stages"]
    for stage in stages.values():
        for part in stage["offered"]:  # only ranks compare the batches that they are given
            del part["identity"]
        for message in stage["activations"]:
            del message["identity"]
    return stages


def on_rank(rank: int, world_size: int) -> list[dict[str, Any]]:
    told = []
    for method, options in CASES:
        stage = build_stages(options)[rank]
        with dg.DistributedPipeline(
            stage, cross_entropy, OPTIMIZERS["nesterov"], method=method, timeout_s=20, **options
        ) as pipe:
            told.append(drive(pipe))
    return told


def test_ranks_clip_and_scale_as_one_process_does() -> None:
    ranks = run_ranks(on_rank, 3, timeout_s=100)
    for index, (method, options) in enumerate(CASES):
        torch.manual_seed(0)
        local = dg.LocalPipeline(
            build_stages(options), cross_entropy, OPTIMIZERS["nesterov"], method=method, **options
        )
        expected, told = drive(local), [of_rank[index] for of_rank in ranks]
        assert_same(told[-1]["losses"], expected["losses"])
        for name in ("saved", "end"):
            states = [stages_of(of_rank[name]) for of_rank in told]
            stages = {k: stage for of_rank in states for k, stage in of_rank.items()}
            assert_same(stages, stages_of(expected[name]))
        assert [count for of_rank in told for count in of_rank["skipped"]] == expected["skipped"]
        assert expected["skipped"] == ([1, 1, 0] if "loss_scale" in options else [0, 0, 0])
