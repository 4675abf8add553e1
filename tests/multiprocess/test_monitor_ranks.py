"""The monitor of a rank per stage: the rows of one process, and training as without it."""

from __future__ import annotations

from typing import Any

import torch
from exact import assert_same
from networks import NETWORKS, OPTIMIZERS, batches, into_stages
from ranks import run_ranks
from saved import from_bytes, to_bytes
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.methods import METHODS
from delaygrad.runtime import Pipeline

NUM_STAGES = 3
CASES = [
    (dg.DDG(), "dropout", 2),
    (dg.DDG(slack=1, micro_batches=2, boundary_dtype=torch.bfloat16), "in-place convolutions", 3),
    (dg.Lookahead(micro_batches=2), "batch norm", 1),
    (METHODS["adl"](micro_batches=2), "dropout", 2),
]


def silent(row: dict[str, Any], warning: str | None) -> None:
    """In place of a warning, which would be an error here."""


def drive(pipe: Pipeline, network: str, every: int | None) -> dict[str, Any]:
    monitor = None if every is None else dg.Monitor(pipe, every, report=silent)
    losses = []
    data = batches(18, NETWORKS[network][1], sizes=(8, 6, 6, 9))
    for index, (inputs, targets) in enumerate(data):
        losses.append(pipe.step(inputs, targets))
        if index == 6:
            pipe.state_dict()
        if index == 10:
            pipe.flush()
    state = to_bytes(pipe.state_dict())
    pipe.flush()
    rows = [] if monitor is None else monitor.rows
    return {"losses": losses, "rows": rows, "state": state}


def on_ranks(rank: int, world_size: int) -> list[dict[str, Any]]:
    told = []
    for method, network, every in CASES:
        torch.manual_seed(0)
        stage = into_stages(NETWORKS[network][0](), world_size)[rank]
        pipe = dg.DistributedPipeline(
            stage, cross_entropy, OPTIMIZERS["nesterov"], method=method, timeout_s=20
        )
        with pipe:
            told.append(drive(pipe, network, every))
    return told


def in_one_process(method: dg.Method, network: str, every: int | None) -> dict[str, Any]:
    torch.manual_seed(0)
    stages = into_stages(NETWORKS[network][0](), NUM_STAGES)
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["nesterov"], method=method)
    return drive(pipe, network, every)


def test_rows_and_training_are_those_of_one_process() -> None:
    ranks = run_ranks(on_ranks, NUM_STAGES, timeout_s=120)
    for index, (method, network, every) in enumerate(CASES):
        local = in_one_process(method, network, every)
        plain = in_one_process(method, network, None)
        told = [of_rank[index] for of_rank in ranks]
        assert len(local["rows"]) >= NUM_STAGES
        for of_rank in told:
            assert of_rank["rows"] == local["rows"]
        assert_same(told[-1]["losses"], plain["losses"])
        expected = from_bytes(plain["state"])["stages"]
        for k, of_rank in enumerate(told):
            found = from_bytes(of_rank["state"])["stages"]
            assert_same(found[str(k)]["model"], expected[str(k)]["model"])
            assert_same(found[str(k)]["optimizer"], expected[str(k)]["optimizer"])
            assert_same(found[str(k)]["random"], expected[str(k)]["random"])
