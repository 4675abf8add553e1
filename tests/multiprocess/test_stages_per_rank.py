"""Several stages on one rank: what ranks with blocks of stages compute, one process computes too.

K = 4 on two ranks, and K = 3 on two ranks, one of which has two stages. One group of processes runs
all cases of one K.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from exact import assert_same
from networks import OPTIMIZERS, batches, mlp
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy
from zoo import TIED_LANGUAGE_MODEL

import delaygrad as dg
from delaygrad.methods.axes import ClipNorm, LossScale
from delaygrad.runtime import Pipeline
from delaygrad.runtime.chain import outward_first, require_apart
from delaygrad.schedule import FLUSH, locked, unlocked

STOP = 4
CUTS = {3: ["2", "5"], 4: ["2", "4", "6"]}
DATA = list(batches(9, (6,), sizes=(6, 6, 7, 8)))


@dataclass(frozen=True)
class Case:
    method: dg.Method
    optimizer: str = "nesterov"
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case(dg.DDG(), "adamw"),
    Case(dg.Lookahead(micro_batches=3)),
    Case(dg.DDG(micro_batches=2, recompute=True), options={"clip_norm": 0.05}),
    Case(dg.DDG(), options={"clip_norm": ClipNorm(0.05, wait=True)}),
    Case(dg.DDG(slack=1), options={"loss_scale": LossScale(2.0**130, growth_interval=2)}),
    Case(dg.FDG(beta=0.7)),
    Case(dg.BP()),
]
"""The loss scale overflows in the first batches."""


def blocks() -> list[nn.Module]:
    """BatchNorm and dropout in every stage."""
    return [
        block if block is found[-1] else nn.Sequential(nn.Dropout(0.1), block, nn.BatchNorm1d(7))
        for found in [mlp(8)]
        for block in found
    ]


def build(num_stages: int, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    stages = dg.split(nn.Sequential(*blocks()), num_stages, cuts=CUTS[num_stages])
    torch.manual_seed(100 + seed)
    return stages


def tied(num_stages: int) -> list[nn.Module]:
    model = TIED_LANGUAGE_MODEL.build()
    sample = TIED_LANGUAGE_MODEL.batch(4, 6)
    cuts = ["layers.1", "layers.3"] if num_stages == 3 else ["layers.1", "layers.2", "layers.3"]
    return dg.split(model, num_stages, sample_inputs=sample, cuts=cuts)


def of_rank(stages: list[nn.Module], rank: int, world_size: int) -> list[nn.Module]:
    num = len(stages)
    return stages[num * rank // world_size : num * (rank + 1) // world_size]


def drive(pipe: Pipeline, data: list[tuple[Tensor, Tensor]], start: int = 0) -> dict[str, Any]:
    """Two phases; all that can be seen from outside."""
    told: dict[str, Any] = {"losses": [], "shared": [], "evaluated": []}
    for index, (inputs, targets) in enumerate(data[start:], start):
        if index == STOP:
            told["saved"] = to_bytes(pipe.state_dict())
        shared = index == 6
        told["shared" if shared else "losses"].append(
            pipe.step(inputs, targets, share_loss=shared, batch_id=index)
        )
        if index in (2, 5):
            told["evaluated"].append(pipe.evaluate(inputs[:3], targets[:3], share_loss=True))
        if index == 5:
            pipe.flush()
    told["scale"], told["skipped"] = pipe.loss_scale, pipe.skipped
    told["in flight"] = to_bytes(pipe.state_dict())
    pipe.flush()
    told["predicted"] = pipe.predict(data[0][0])
    told["whole"] = dg.gather(pipe)
    told["end"] = to_bytes(pipe.state_dict())
    pipe.close()
    return told


def to_bytes(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def joined(states: list[bytes]) -> dict[str, Any]:
    parts = [torch.load(io.BytesIO(state), weights_only=True) for state in states]
    stages = {k: comparable(v) for part in parts for k, v in part["stages"].items()}
    return {**parts[0], "stages": stages}


def comparable(state: dict[str, Any]) -> dict[str, Any]:
    """One process reads each batch once, so it does not name it. NaN equals NaN."""
    activations = [{**message, "identity": None} for message in state["activations"]]
    gradients = [
        {**message, "tensors": [t.nan_to_num(nan=7.0) for t in message["tensors"] if t is not None]}
        for message in state["gradients"]
    ]
    offered = [{**part, "identity": None} for part in state["offered"]]
    return {**state, "activations": activations, "gradients": gradients, "offered": offered}


def make_case(make: Callable[..., Pipeline], stages: list[nn.Module], case: Case) -> Any:
    optimizer = OPTIMIZERS[case.optimizer]
    return make(stages, cross_entropy, optimizer, method=case.method, **case.options)


def run_cases(rank: int, world_size: int, num_stages: int) -> list[dict[str, Any]]:
    told = []
    for case in CASES:
        own = of_rank(build(num_stages), rank, world_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.DelaygradWarning)
            told.append(drive(make_case(dg.DistributedPipeline, own, case), DATA))
    own = of_rank(tied(num_stages), rank, world_size)
    pipe = dg.DistributedPipeline(own, TIED_LANGUAGE_MODEL.loss, OPTIMIZERS["nesterov"])
    told.append(drive(pipe, list(TIED_LANGUAGE_MODEL.batches(9))))
    return told


@pytest.mark.parametrize("num_stages", [4, 3])
def test_blocks_of_stages_compute_what_one_process_computes(num_stages: int) -> None:
    ranks = run_ranks(run_cases, 2, timeout_s=110, args=(num_stages,))
    local = [drive(make_case(dg.LocalPipeline, build(num_stages), c), DATA) for c in CASES]
    pipe = dg.LocalPipeline(tied(num_stages), TIED_LANGUAGE_MODEL.loss, OPTIMIZERS["nesterov"])
    local.append(drive(pipe, list(TIED_LANGUAGE_MODEL.batches(9))))
    for expected, *told in zip(local, *ranks, strict=True):
        for name in ("losses", "predicted"):
            assert_same(told[1][name], expected[name], name)
        for name in ("shared", "evaluated"):
            values = [told[0][name], expected[name]]
            assert_same(told[1][name], expected[name], name)
            if name == "shared":
                assert_same(*values, name)
        assert_same(told[0]["whole"], expected["whole"], "gathered")
        assert told[1]["whole"] == {} and told[0]["scale"] == expected["scale"]
        assert told[0]["skipped"] + told[1]["skipped"] == expected["skipped"]
        for name in ("saved", "in flight", "end"):
            ours = joined([of_rank[name] for of_rank in told])
            assert_same(ours, joined([expected[name]]), name)
    scaled = local[4]
    assert max(scaled["skipped"]) > 0 and scaled["scale"] < 2.0**130


def change_ranks(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Four ranks with one stage each, then two with two, then four again; monitored."""
    two, told = dist.new_group([0, 1]), {}
    options = {"method": dg.DDG(micro_batches=2), "clip_norm": 0.1}
    for part, size in enumerate((4, 2, 4)):
        if rank >= size:
            dist.barrier()
            continue
        own = of_rank(build(4, seed=part), rank, size)
        group = two if size == 2 else None
        with dg.DistributedPipeline(
            own, cross_entropy, OPTIMIZERS["adam"], group=group, **options
        ) as pipe:
            assert len(pipe.stages) == 4 // size and pipe.stage_index == 4 // size * rank
            monitor = dg.Monitor(pipe, every=1, report=lambda row, warning: None)
            if part:
                saved = 2 * rank if size == 2 else rank // 2 * 2  # the first stage of that rank
                assert pipe.load_newest(folder) == {"stage": saved}
            for inputs, targets in DATA[3 * part : 3 * part + 3]:
                pipe.step(inputs, targets)
            pipe.save(folder, extra={"stage": pipe.stage_index})
            told[f"rows {part}"] = monitor.rows
            if part == 2:
                pipe.flush()
                told["whole"] = dg.gather(pipe)
        dist.barrier()
    return told


def test_a_checkpoint_loads_on_another_number_of_ranks(tmp_path: Path) -> None:
    ranks = run_ranks(change_ranks, 4, timeout_s=110, args=(str(tmp_path),))
    pipe = dg.LocalPipeline(
        build(4), cross_entropy, OPTIMIZERS["adam"], method=dg.DDG(micro_batches=2), clip_norm=0.1
    )
    for part in range(3):
        monitor = dg.Monitor(pipe, every=1, report=lambda row, warning: None)
        for inputs, targets in DATA[3 * part : 3 * part + 3]:
            pipe.step(inputs, targets)
        assert ranks[0][f"rows {part}"] == monitor.rows != []
        pipe.monitor = None
    pipe.flush()
    assert_same(ranks[0]["whole"], dg.gather(pipe))


def train_replicas(rank: int, world_size: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    torch.manual_seed(0)
    model = nn.Sequential(*mlp(8))
    with dg.DistributedPipeline.from_model(
        model,
        cross_entropy,
        OPTIMIZERS["adamw"],
        sample_inputs=DATA[0][0],
        num_stages=3,
        cuts=["2", "5"],
        method=dg.Lookahead(micro_batches=1),
        clip_norm=ClipNorm(0.1, wait=True),
        mesh=mesh,
    ) as pipe:
        for inputs, targets in DATA:
            pipe.step(inputs, targets)
        pipe.flush()
        alike = [dict(stage.state_dict()) for stage in pipe.stages]
        for inputs, targets in DATA:
            pipe.step(inputs + pipe.replica, targets)
        pipe.flush()
        return {"alike": alike, "apart": [dict(stage.state_dict()) for stage in pipe.stages]}


def test_stages_times_replicas_with_several_stages_on_a_rank() -> None:
    """Replicas that read the same batches are one pipeline; others still hold one network."""
    ranks = run_ranks(train_replicas, 4, timeout_s=110)
    torch.manual_seed(0)
    pipe = dg.LocalPipeline(
        dg.split(nn.Sequential(*mlp(8)), 3, cuts=["2", "5"]),
        cross_entropy,
        OPTIMIZERS["adamw"],
        method=dg.Lookahead(micro_batches=1),
        clip_norm=ClipNorm(0.1, wait=True),
    )
    for inputs, targets in DATA:
        pipe.step(inputs, targets)
    pipe.flush()
    expected = [dict(stage.state_dict()) for stage in pipe.stages]
    for replica in range(2):
        assert_same(ranks[replica]["alike"] + ranks[2 + replica]["alike"], expected)
    for rank in (0, 2):
        assert_same(ranks[rank]["apart"], ranks[rank + 1]["apart"])
        assert not ranks[rank]["apart"][0]["0.0.weight" if rank == 0 else "2.0.weight"].equal(
            ranks[rank]["alike"][0]["0.0.weight" if rank == 0 else "2.0.weight"]
        )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (locked(), "2F7 3F7 2B6 3B7 2U6 3U7"),
        (unlocked(), "3F4 2F5 2B3 3B4 2U3 3U4"),
        (FLUSH, "2F7 3F7 3B7 2B7 3U7 2U7"),
    ],
    ids=repr,
)
def test_what_another_rank_waits_for_comes_first(schedule: Any, expected: str) -> None:
    actions = schedule.actions(7, 4, stages=(2, 3))
    assert " ".join(map(str, outward_first(actions, schedule, 4))) == expected


def test_stages_of_one_rank_may_not_share_a_parameter() -> None:
    shared = nn.Linear(2, 2)
    with pytest.raises(dg.PartitionError, match=r"'0.weight' in stage 2, '1.weight' in stage 3"):
        require_apart([nn.Sequential(shared), nn.Sequential(nn.Tanh(), shared)], dg.DDG(), first=2)
