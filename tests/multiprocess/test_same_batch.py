"""Ranks that read different batches are told so; those that read the same are left alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from multiprocess.test_examples import EXAMPLES
from networks import OPTIMIZERS, batches, dropout_mlp, into_stages
from ranks import run_ranks_raw
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchrun_ranks import run_program

import delaygrad as dg
from delaygrad.runtime.batch_identity import checksum


def test_the_example_learns_with_dropout_in_its_first_stage(tmp_path: Path) -> None:
    text = (EXAMPLES / "two_processes.py").read_text()
    with_dropout = text.replace(
        "nn.Linear(64, 256), nn.ReLU(),", "nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.1),", 1
    ).replace('cuts=["2"]', 'cuts=["3"]')
    # Each rank says which batches it reads.
    with_dropout = with_dropout.replace(
        "            pipe.step(",
        '            print(f"rank{rank} {batch.tolist()}")\n            pipe.step(',
    )
    assert with_dropout.count("Dropout") == with_dropout.count('print(f"rank{rank}') == 1
    (tmp_path / "example.py").write_text(with_dropout)
    told, _ = run_program(2, tmp_path / "example.py", cwd=tmp_path)
    orders = [re.findall(rf"rank{rank} (\[[\d, ]+\])", told) for rank in range(2)]
    assert len(orders[0]) == 20 * 30 and orders[0] == orders[1]
    (accuracy,) = re.findall(r"accuracy on 297 digits held out: ([\d.]+)%", told)
    assert float(accuracy) > 80  # 24 with wrong pairs


class Case:
    """What each rank gives to ``step`` beside the inputs."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def arguments(self, rank: int, iteration: int, targets: Tensor) -> tuple[Any, dict[str, Any]]:
        last = iteration == 3  # until then the ranks agree
        moved = iteration + (1 if last and rank else 0)
        if self.kind == "batch_id":
            return (targets if rank else None), {"batch_id": moved}
        if self.kind == "name":
            return (targets if rank else None), {"batch_id": f"epoch 0, batch {moved}"}
        if self.kind == "targets":
            return (targets.roll(1) if last and rank else targets), {}
        if self.kind == "one name only":
            return (targets if rank else None), {"batch_id": 7} if rank else {}
        return (targets if rank else None), {}


def train(
    rank: int, world_size: int, kind: str, options: dict[str, Any]
) -> tuple[int, list[Tensor]]:
    torch.manual_seed(0)
    stage = into_stages(dropout_mlp(), world_size)[rank]
    pipe = dg.DistributedPipeline(
        stage, cross_entropy, OPTIMIZERS["sgd"], method=dg.DDG(**options), timeout_s=20
    )
    before: list[Tensor] = []
    for iteration, (inputs, targets) in enumerate(batches(5, (6,))):
        before = [parameter.detach().clone() for parameter in stage.parameters()]
        given, named = Case(kind).arguments(rank, iteration, targets)
        try:
            pipe.step(inputs if rank == 0 else None, given, **named)
        except dg.TransportError as error:
            if rank == world_size - 1:
                now = list(stage.parameters())
                assert all(map(torch.equal, now, before)), "the last stage has moved"
            raise error
    pipe.flush()
    pipe.close()
    return pipe.iteration, before


@pytest.mark.parametrize(
    ("world_size", "kind", "options", "values"),
    [
        (2, "batch_id", {}, r"batch_id on stage 0: 3, here: 4"),
        (
            2,
            "name",
            {"slack": 1},
            r"batch_id on stage 0: 'epoch 0, batch 3', here: 'epoch 0, batch 4'",
        ),
        (3, "targets", {"micro_batches": 2}, r"checksum of the targets on stage 0: \d+, here: \d+"),
    ],
)
def test_different_batches_are_an_error_before_the_last_stage_moves(
    world_size: int, kind: str, options: dict[str, Any], values: str
) -> None:
    last = run_ranks_raw(train, world_size, args=(kind, options))[-1]
    assert last.error is not None
    place = rf"\[stage {world_size - 1}, rank {world_size - 1}, iteration 3, action "
    assert re.search(rf"{place}.*given different batches \({values}\); read the same", last.error)


@pytest.mark.parametrize("kind", ["nothing", "one name only"])
def test_what_only_one_rank_knows_is_not_compared(kind: str) -> None:
    outcomes = run_ranks_raw(train, 2, args=(kind, {}))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert outcomes[0].result[0] == 5


def test_the_checksum_is_of_contents() -> None:
    targets = torch.randint(9, (4, 6))
    assert checksum(targets) == checksum(targets.T.contiguous().T)
    assert checksum({"a": targets, "b": None}) == checksum({"a": targets.clone(), "b": None})
    others = [targets + 1, targets.int(), targets.T, (targets,), targets.bool(), targets.bfloat16()]
    assert len({checksum(other) for other in [targets, *others]}) == 7
    large = torch.zeros(300, 200)
    moved = large.clone()
    moved[0, 0] = 1
    assert checksum(large) == checksum(large.clone()) != checksum(moved)
    assert checksum(torch.zeros(0)) is not None


@pytest.mark.parametrize(
    "targets", [None, ["a", "b"], torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.cfloat)]
)
def test_what_cannot_be_read_cheaply_has_no_checksum(targets: Any) -> None:
    assert checksum(targets) is None


def test_a_batch_id_is_an_int_or_a_str() -> None:
    pipe = dg.LocalPipeline(into_stages(dropout_mlp(), 2), cross_entropy, OPTIMIZERS["sgd"])
    ((inputs, targets),) = batches(1, (6,))
    for batch_id in (0, "one", np.int64(3)):
        pipe.step(inputs, targets, batch_id=batch_id)
    with pytest.raises(TypeError, match="neither an int nor a str"):
        pipe.step(inputs, targets, batch_id=0.5)  # type: ignore[arg-type]
