"""A loop of the user's own that is killed and continued ends with the same bits."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from exact import assert_same
from networks import OPTIMIZERS, batches, dropout_mlp
from ranks import run_ranks
from torch import nn
from torch.nn.functional import cross_entropy
from torchrun_ranks import run_program

import delaygrad as dg

PROGRAM = Path(__file__).parents[2] / "examples" / "own_loop.py"


def digest_of(told: str) -> str:
    (digest,) = re.findall(r"sha256 of the parameters: (\w{64})", told)
    return digest


def test_killed_and_continued_alone_and_under_torchrun(tmp_path: Path) -> None:
    length = ["--iterations", 40, "--save-every", 4]
    whole, _ = run_program(1, PROGRAM, [*length, "--folder", tmp_path / "whole"])

    folder = tmp_path / "killed"
    killed = [*length, "--folder", folder]
    for world_size, count in ((2, 1), (1, 4)):

        def is_due(least: int = count) -> bool:
            done = [int(path.name[10:]) for path in folder.glob("iteration-????????")]
            return max(done, default=0) >= 4 * least

        run_program(world_size, PROGRAM, killed, kill_when=is_due)
    resumed, _ = run_program(2, PROGRAM, killed)
    assert "iteration 4:" not in resumed  # it went on, and did not begin again
    assert digest_of(resumed) == digest_of(whole)


def test_a_run_that_ended_continues_with_three_stages(tmp_path: Path) -> None:
    first, then = ["--iterations", 8], ["--iterations", 16, "--stages", 3]
    run_program(2, PROGRAM, [*first, "--folder", tmp_path / "a"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    digests = [
        digest_of(run_program(world_size, PROGRAM, [*then, "--folder", tmp_path / folder])[0])
        for world_size, folder in ((3, "a"), (1, "b"))
    ]
    assert digests[0] == digests[1]


def save_and_gather(rank: int, world_size: int, shared: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(*dropout_mlp())
    folders = [Path(shared), Path(shared) / f"of-rank-{rank}"]  # one disk, and one of its own
    found: dict[str, Any] = {}

    def make() -> dg.DistributedPipeline:
        torch.manual_seed(rank)  # rank 0's counts
        stage = dg.split(model, world_size, cuts=["3"])[rank]
        return dg.DistributedPipeline(stage, cross_entropy, OPTIMIZERS["adamw"], timeout_s=30)

    with make() as pipe:
        for inputs, targets in batches(5, (6,)):
            pipe.step(inputs, targets)
        for folder in folders:
            pipe.save(folder, extra={"rank": rank})
        try:  # one rank cannot save this: none does
            pipe.save(folders[0], extra={"rank": object() if rank else 1})
        except dg.CheckpointError as error:
            found["refused"] = str(error)
        pipe.step(*next(batches(1, (6,))))
        pipe.flush()
        found["whole"] = dg.gather(pipe)
    if rank == 1:  # of two disks one has lost its newest checkpoint
        pipe_folder = folders[1] / "iteration-00000005"
        pipe_folder.rename(folders[1] / "iteration-00000004")
    with make() as pipe:
        found["extra"] = pipe.load_newest(folders[0])
        pipe.step(*next(batches(1, (6,))))
        pipe.flush()
        found["again"] = dg.gather(pipe)
        try:
            pipe.load_newest(folders[1])
        except dg.CheckpointError as error:
            found["apart"] = str(error)
    return found


def test_ranks_save_load_and_gather_as_one(tmp_path: Path) -> None:
    found = run_ranks(save_and_gather, 2, args=[str(tmp_path)])
    torch.manual_seed(0)
    model = nn.Sequential(*dropout_mlp())
    torch.manual_seed(0)
    stages = dg.split(model, 2, cuts=["3"])
    pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adamw"])
    assert pipe.load_newest(tmp_path) == {"rank": 0}  # written by two processes
    pipe.step(*next(batches(1, (6,))))
    pipe.flush()
    assert [of_rank["extra"] for of_rank in found] == [{"rank": 0}, {"rank": 1}]
    assert_same(found[0]["whole"], dg.gather(pipe))
    assert_same(found[0]["again"], found[0]["whole"])
    assert found[1]["whole"] == found[1]["again"] == {}
    for of_rank in found:
        assert "cannot save this object (state.extra.rank)" in of_rank["refused"]
        assert "have no checkpoint in common" in of_rank["apart"]
