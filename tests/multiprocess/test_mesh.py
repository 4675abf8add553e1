"""Stages x replicas: the gradients of a stage are averaged over its replicas before each update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact import assert_same
from networks import batch_norm_mlp, batches, dropout_mlp
from ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

import delaygrad as dg
import delaygrad.runtime.average
from delaygrad.methods.axes import ClipNorm
from delaygrad.runtime.average import Average

STAGES, REPLICAS, STOP = 2, 2, 4
DATA = list(batches(8, (6,), sizes=(8, 8, 12)))


def make_optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.02)


def build(blocks: Any = batch_norm_mlp) -> list[nn.Module]:
    torch.manual_seed(2)
    return dg.split(nn.Sequential(*blocks()), STAGES, cuts=["4"])


def part(batch: tuple[Tensor, Tensor], replica: int) -> tuple[Tensor, Tensor]:
    inputs, targets = (tensor.chunk(REPLICAS)[replica] for tensor in batch)
    return inputs.clone(), targets


def pipeline(rank: int, seed: int = 0, blocks: Any = batch_norm_mlp, **options: Any) -> Any:
    mesh = init_device_mesh("cpu", (STAGES, REPLICAS), mesh_dim_names=("pp", "dp"))
    stage = build(blocks)[mesh.get_local_rank("pp")]
    torch.manual_seed(seed)
    return dg.DistributedPipeline(stage, cross_entropy, make_optimizer, mesh=mesh, **options)


def train_replicas(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for micro_batches in (1, 2):
        method = dg.DDG(micro_batches=micro_batches)
        losses = []
        with pipeline(rank, method=method) as pipe:
            for index, batch in enumerate(DATA):
                losses.append(pipe.step(*part(batch, pipe.replica), share_loss=index == 3))
            pipe.flush()
            told[f"{micro_batches}"] = losses, dict(pipe.stage.state_dict())

    # Dropout, clipping, and a checkpoint with batches in flight.
    for name, path in (("whole", f"{folder}/a"), ("resumed", f"{folder}/a")):
        options = {"blocks": dropout_mlp, "clip_norm": 0.1}
        with pipeline(rank, seed=0 if name == "whole" else 9, **options) as pipe:
            first = 0
            if name == "resumed":
                first = pipe.load_newest(path)["offset"]
            for index in range(first, len(DATA)):
                if index == STOP and name == "whole":
                    pipe.save(path, extra={"offset": index})
                pipe.step(*part(DATA[index], pipe.replica))
            pipe.flush()
            told[name] = dict(pipe.stage.state_dict())
    with pipeline(rank, blocks=dropout_mlp) as pipe:
        pipe.step(*part(DATA[0], pipe.replica))
        pipe.flush()
        pipe.save(f"{folder}/b", extra={"seen": 1})
        told["flushed"] = dict(pipe.stage.state_dict())
        told["some have none"] = average_what_some_have(pipe)
    told["mistakes"] = mistakes(rank)
    return told


def average_what_some_have(pipe: Any) -> list[Tensor | None]:
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    parameters[0].grad = torch.ones(3)
    if pipe.replica:
        parameters[1].grad = torch.ones(3)
    average = pipe._replicas.average(parameters)
    with average.during(None):
        pass
    assert average.finish() and not average.finish()
    return [p.grad for p in parameters]


def mistakes(rank: int) -> list[str]:
    told = []
    mesh = init_device_mesh("cpu", (STAGES, REPLICAS), mesh_dim_names=("pp", "dp"))
    torch.manual_seed(mesh.get_local_rank("dp"))
    stage = nn.Linear(6, 6)
    for options in ({}, {"group": mesh.get_group("pp")}):
        with pytest.raises(dg.DelaygradError) as caught:
            dg.DistributedPipeline(stage, cross_entropy, make_optimizer, mesh=mesh, **options)
        told.append(str(caught.value))
    return told


class Naive:
    """Block k of the mean over replicas of the gradient of batch t - delay(k), at that time."""

    def __init__(self) -> None:
        self.stages = [build() for _ in range(REPLICAS)]  # the buffers are each replica's own
        self.optimizers = [make_optimizer(list(stage.parameters())) for stage in self.stages[0]]
        self.blocks: list[list[list[Tensor]]] = []

    def step(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        found, losses = [], []
        for replica, stages in enumerate(self.stages):
            inputs, targets = part(batch, replica)
            for stage in stages:
                stage.zero_grad()
                inputs = stage(inputs)
            losses.append(cross_entropy(inputs, targets))
            losses[-1].backward()
            found.append([[p.grad for p in stage.parameters()] for stage in stages])
            for stage in stages:
                stage.zero_grad()
        pairs = [zip(*of_stage, strict=True) for of_stage in zip(*found, strict=True)]
        self.blocks.append([[(one + other) / 2 for one, other in of_stage] for of_stage in pairs])
        for k in range(STAGES):
            self.update(k, len(self.blocks) - STAGES + k)
        return [loss.detach() for loss in losses]

    def update(self, k: int, batch: int) -> None:
        if 0 <= batch < len(self.blocks):
            for p, gradient in zip(
                self.stages[0][k].parameters(), self.blocks[batch][k], strict=True
            ):
                p.grad = gradient
            self.optimizers[k].step()
        for stages in self.stages[1:]:
            for p, first in zip(
                stages[k].parameters(), self.stages[0][k].parameters(), strict=True
            ):
                p.data = first.data.clone()


def test_replicas_equal_a_loop_that_averages_their_gradients(tmp_path: Path) -> None:
    ranks = run_ranks(train_replicas, STAGES * REPLICAS, args=(str(tmp_path),), timeout_s=100)
    naive = Naive()
    losses = [naive.step(batch) for batch in DATA]
    naive.update(0, len(DATA) - 1)
    for rank, told in enumerate(ranks):
        k, replica = divmod(rank, REPLICAS)
        own, state = told["1"]
        assert_same(state, dict(naive.stages[replica][k].state_dict()))
        mean = torch.tensor(sum(loss.item() for loss in losses[3]) / REPLICAS)
        expected = [of_batch[replica] if k else None for of_batch in losses]
        assert_same(own, [*expected[:3], mean, *expected[4:]])
        assert_same(told["resumed"], told["whole"])
        for name in ("whole", "resumed"):  # dropout differs, the parameters do not
            assert_same(told[name], ranks[k * REPLICAS][name])
        alike = {n: v for n, v in told["2"][1].items() if "running" not in n}
        assert_same(alike, {n: ranks[k * REPLICAS]["2"][1][n] for n in alike})
        assert_same(told["some have none"], [torch.ones(3), torch.full((3,), 0.5), None])
        assert "the replicas of a stage differ" in told["mistakes"][0]
        assert "no group beside it" in told["mistakes"][1]

    # What replicas saved after a flush continues without them; what was in flight does not.
    with dg.LocalPipeline(build(dropout_mlp), cross_entropy, make_optimizer) as pipe:
        with pytest.raises(dg.CheckpointError, match="batches in flight"):
            pipe.load_newest(tmp_path / "a")
        assert pipe.load_newest(tmp_path / "b") == {"seen": 1}
        for k, stage in enumerate(pipe.stages):
            assert_same(dict(stage.state_dict()), ranks[k * REPLICAS]["flushed"])


def clip_together(rank: int, world_size: int) -> list[float]:
    norms = []
    with pipeline(rank, clip_norm=ClipNorm(0.1, wait=True)) as pipe:
        for batch in DATA[:5]:
            pipe.step(*part(batch, pipe.replica))
            gradients = [p.grad for p in pipe.stage.parameters() if p.grad is not None]
            norms.append(float(nn.utils.get_total_norm(gradients)))
    return norms


def test_stages_that_wait_for_each_other_clip_by_the_norm_of_one_replica() -> None:
    ranks = run_ranks(clip_together, STAGES * REPLICAS, timeout_s=100)
    for replica in range(REPLICAS):
        first, last = ranks[replica], ranks[REPLICAS + replica]
        for one, other in list(zip(first, last, strict=True))[1:]:
            assert (one**2 + other**2) ** 0.5 == pytest.approx(0.1, rel=1e-3)


class Twice(nn.Module):
    """One layer, used twice; its gradient comes in two pieces where segments are reentrant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.reentrant = nn.Linear(7, 7), False

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = checkpoint(self.layer, x, use_reentrant=self.reentrant)
        return x.tanh()


def share_out(rank: int, world_size: int) -> dict[str, Any]:
    """Two replicas of three stages, each on one rank; buckets of one parameter each, or one."""
    told: dict[str, Any] = {}
    mesh = init_device_mesh("cpu", (1, REPLICAS), mesh_dim_names=("pp", "dp"))
    start, early = Average._start, [0]

    def counting(average: Average, *, complete: bool) -> None:
        before = average._started
        start(average, complete=complete)
        early[0] += complete * (average._started - before)

    Average._start = counting  # type: ignore[method-assign]
    for name, num_bytes, reentrant in (
        ("one bucket", 1 << 20, False), ("buckets", 1, False),
        ("one bucket, pieces", 1 << 20, True), ("buckets, pieces", 1, True),
    ):  # fmt: skip
        delaygrad.runtime.average._BUCKET_BYTES, early[0] = num_bytes, 0
        torch.manual_seed(2)
        blocks = batch_norm_mlp()
        blocks[3], blocks[5] = Twice(), Twice()
        blocks[3].reentrant = blocks[5].reentrant = reentrant
        stages = dg.split(nn.Sequential(*blocks), 3, cuts=["2", "5"])
        method = dg.DDG(micro_batches=2)
        with dg.DistributedPipeline(
            stages, cross_entropy, make_optimizer, method=method, mesh=mesh
        ) as pipe:
            pipe.start_trace(len(DATA))
            for batch in DATA:
                pipe.step(*part(batch, pipe.replica))
            traces = pipe.stage_traces()
            pipe.flush()
            states = [dict(stage.state_dict()) for stage in stages]
        told[name] = states, early[0], pipe.stage_seconds()
        told[f"{name} events"] = [
            [event.activity for event in trace.events].count("average") for trace in traces
        ]
    torch.manual_seed(2)
    late = nn.Sequential(nn.Linear(7, 7), Twice())
    with dg.DistributedPipeline(late, mse_loss, make_optimizer, mesh=mesh) as pipe:
        pipe.step(torch.ones(4, 7), torch.ones(4, 7))
        late[1].reentrant = True
        with pytest.raises(dg.StageError) as caught:
            pipe.step(torch.ones(4, 7), torch.ones(4, 7))
        told["error"] = str(caught.value)
    return told


def test_buckets_travel_during_the_backward_and_change_no_bit() -> None:
    first, second = run_ranks(share_out, REPLICAS, timeout_s=100)
    for name in ("one bucket", "buckets", "one bucket, pieces", "buckets, pieces"):
        states, early, seconds = first[name]
        assert_same(states, first[name.replace("buckets", "one bucket")][0])
        for k, state in enumerate(states):  # the statistics of BatchNorm are each replica's own
            alike = {n: v for n, v in state.items() if "running" not in n}
            assert_same({n: second[name][0][k][n] for n in alike}, alike)
        assert all(of_stage["average"] > 0 for of_stage in seconds)
        # One for each update; delays are at most 1.
        assert first[f"{name} events"] == [len(DATA) - 1, len(DATA) - 1, len(DATA)]
    assert first["buckets"][1] > 3 * first["one bucket"][1]
    assert first["buckets, pieces"][1] < first["buckets"][1] / 2
    assert "use_reentrant=False" in first["error"]
