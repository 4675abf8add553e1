"""A checkpoint saved after ``flush`` continues at another number of stages, exactly."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from equivalence.naive import NaiveDelayedGradients
from exact import assert_same
from networks import OPTIMIZERS, batch_norm_mlp, batches, dropout_mlp, into_stages, mlp
from ranks import run_ranks
from torch import nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.errors import CheckpointError
from delaygrad.methods.error_feedback import DelayedEF
from delaygrad.runtime import Pipeline

BLOCKS = 8
DATA = list(batches(11, (6,)))
SEEDS = 3, 4


def model(blocks: Any = dropout_mlp, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*blocks(BLOCKS))


def cuts(num_stages: int) -> list[str]:
    return [str(BLOCKS * k // num_stages) for k in range(1, num_stages)]


def pipeline(
    num_stages: int, *, seed: int, blocks: Any = dropout_mlp, **options: Any
) -> dg.LocalPipeline:
    stages = dg.split(model(blocks, seed), num_stages, cuts=cuts(num_stages))
    torch.manual_seed(seed)
    return dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adamw"], **options)


def save_flushed(num_stages: int, folder: Path, **options: Any) -> None:
    with pipeline(num_stages, seed=SEEDS[0], **options) as pipe:
        for batch in DATA[:5]:
            pipe.step(*batch)
        pipe.flush()
        pipe.save(folder, extra={"offset": 5})


def train_on(pipe: Pipeline) -> None:
    for batch in DATA[5:]:
        pipe.step(*batch)
    pipe.flush()


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (3, 1), (1, 2)])
def test_it_equals_a_run_that_flushes_and_cuts_anew(
    before: int, after: int, tmp_path: Path
) -> None:
    save_flushed(before, tmp_path)
    pipe = pipeline(after, seed=SEEDS[1])
    assert pipe.load_newest(tmp_path) == {"offset": 5}
    train_on(pipe)

    blocks = list(model(seed=SEEDS[0]))
    make_optimizer = OPTIMIZERS["adamw"]
    torch.manual_seed(SEEDS[0])
    naive = NaiveDelayedGradients(
        into_stages(blocks, before), cross_entropy, make_optimizer, seed=SEEDS[0]
    )
    for batch in DATA[:5]:
        naive.step(*batch)
    naive.flush()
    blocks = [block for stage in naive.stages for block in stage]
    states = [o.state[p] for o in naive.optimizers for g in o.param_groups for p in g["params"]]
    torch.manual_seed(SEEDS[1])
    naive = NaiveDelayedGradients(
        into_stages(blocks, after), cross_entropy, make_optimizer, seed=SEEDS[1]
    )
    parameters = [(o, p) for o in naive.optimizers for g in o.param_groups for p in g["params"]]
    for (optimizer, parameter), state in zip(parameters, states, strict=True):
        optimizer.state[parameter] = copy.deepcopy(state)
    for batch in DATA[5:]:
        naive.step(*batch)
    naive.flush()
    found = [p.detach() for stage in pipe.stages for p in stage.parameters()]
    assert_same(found, [p.detach() for stage in naive.stages for p in stage.parameters()])

    pipe.save(tmp_path)
    assert len(dg.saved_cuts(tmp_path)) == after - 1


@pytest.mark.parametrize(
    "method", [dg.Lookahead(2), DelayedEF(4), dg.DDG(micro_batches=2)], ids=str
)
def test_what_a_method_keeps_follows_its_parameter(method: dg.Method, tmp_path: Path) -> None:
    """There and back again without training between: as if it had stayed."""
    save_flushed(3, tmp_path, method=method, blocks=mlp)
    with pipeline(2, seed=SEEDS[1], method=method, blocks=mlp) as pipe:
        pipe.load_newest(tmp_path)
        pipe.save(tmp_path)
    ends = []
    for folder in (tmp_path, tmp_path / "stayed"):
        save_flushed(3, tmp_path / "stayed", method=method, blocks=mlp)
        with pipeline(3, seed=SEEDS[1], method=method, blocks=mlp) as pipe:
            pipe.load_newest(folder)
            train_on(pipe)
            state = pipe.state_dict()["stages"]
        ends.append([(of["model"], of["optimizer"], of["previous"]) for of in state.values()])
    assert_same(*ends)


def continue_on_three_ranks(rank: int, world_size: int, folder: str) -> Any:
    stage = dg.split(model(), world_size, cuts=cuts(world_size))[rank]
    torch.manual_seed(SEEDS[1])
    with dg.DistributedPipeline(stage, cross_entropy, OPTIMIZERS["adamw"]) as pipe:
        pipe.load_newest(folder)
        train_on(pipe)
        pipe.save(folder)
        return pipe.state_dict()["stages"]


def test_ranks_continue_what_two_stages_in_one_process_saved(tmp_path: Path) -> None:
    save_flushed(2, tmp_path)
    with pipeline(3, seed=SEEDS[1]) as pipe:
        pipe.load_newest(tmp_path)
        train_on(pipe)
        expected = pipe.state_dict()["stages"]
    told = run_ranks(continue_on_three_ranks, 3, args=(str(tmp_path),))
    assert_same({k: v for of_rank in told for k, v in of_rank.items()}, expected)


def test_what_cannot_be_cut_anew_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    def refused(words: str, pipe: dg.LocalPipeline, folder: Path) -> None:
        before = pipe.state_dict()
        with pytest.raises(CheckpointError, match=re.escape(words)):
            pipe.load_newest(folder)
        assert_same(pipe.state_dict(), before)
        pipe.close()

    with pipeline(2, seed=0) as pipe:
        pipe.step(*DATA[0])
        pipe.save(tmp_path / "in flight")
    refused("has batches in flight", pipeline(3, seed=1), tmp_path / "in flight")

    stages = [nn.Sequential(nn.Linear(6, 6)), nn.Sequential(nn.Linear(6, 5))]  # one name, twice
    with dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adamw"]) as pipe:
        pipe.save(tmp_path / "by hand")
    refused("different values of one name (0.weight)", pipeline(3, seed=1), tmp_path / "by hand")

    save_flushed(2, tmp_path / "other network", blocks=batch_norm_mlp)
    refused("missing: 0.1.0.weight", pipeline(3, seed=1), tmp_path / "other network")

    save_flushed(2, tmp_path / "options")
    with pipeline(2, seed=0) as pipe:
        pipe.load_newest(tmp_path / "options")
        pipe.optimizers[1].param_groups[0]["lr"] = 0.5
        pipe.save(tmp_path / "options")
    refused("had different options", pipeline(3, seed=1), tmp_path / "options")

    save_flushed(3, tmp_path / "lost")
    next((tmp_path / "lost").glob("*/stage2.safetensors")).unlink()
    refused("no checkpoint is sound", pipeline(3, seed=1), tmp_path / "lost")
