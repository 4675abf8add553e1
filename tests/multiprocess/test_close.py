"""A pipeline that is closed leaves nothing behind: no socket, no thread, no wait, no complaint."""

from __future__ import annotations

import os
import time

import pytest
import torch
from networks import OPTIMIZERS, batches, into_stages, mlp
from ranks import run_ranks
from torch.nn.functional import cross_entropy

import delaygrad as dg

ENDS = (
    "with",
    "unflushed",
    "rank 0 first",
    "rank 1 first",
    "raised",
    "unused",
    "overlapping",
    "refused",
)
TIMEOUT_S = 20.0


def held() -> tuple[int, int]:
    """Open files and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def make(rank: int, world_size: int, slack: int = 0) -> dg.DistributedPipeline:
    torch.manual_seed(0)
    stage = into_stages(mlp(), world_size)[rank]
    method = dg.DDG(slack=slack)
    return dg.DistributedPipeline(
        stage, cross_entropy, OPTIMIZERS["sgd"], method=method, timeout_s=TIMEOUT_S
    )


def train(pipe: dg.DistributedPipeline, num_batches: int = 4) -> None:
    for inputs, targets in batches(num_batches, (6,)):
        pipe.step(inputs, targets)


def use_and_close(rank: int, world_size: int, end: str) -> None:
    if end == "refused":
        with pytest.raises(dg.ScheduleError, match="different methods"):
            make(rank, world_size, slack=rank)
        return
    pipe = make(rank, world_size, slack=2 if end == "unflushed" else 0)
    if end == "with":
        with pipe as same:
            assert same is pipe
            train(pipe)
            pipe.flush()
            pipe.predict(torch.zeros(2, 6))
    elif end == "unflushed":
        train(pipe, 6)
    elif end in ("rank 0 first", "rank 1 first"):
        train(pipe)
        pipe.flush()
        if str(rank) not in end:
            time.sleep(0.3)
    elif end == "raised":
        with pytest.raises((ZeroDivisionError, dg.TransportError)), pipe:
            train(pipe)
            if rank == 1:
                raise ZeroDivisionError
            train(pipe, 100)
    elif end == "overlapping":  # the next one is there on one rank before this one has gone
        train(pipe)
        pipe.flush()
        if rank == 0:
            pipe.close()
        following = make(rank, world_size)
        pipe.close()
        train(following)
        following.flush()
        following.close()
    pipe.close()
    pipe.close()
    for call in (
        lambda: train(pipe, 1),
        pipe.flush,
        lambda: pipe.predict(torch.zeros(2, 6)),
        pipe.state_dict,
        lambda: pipe.load_state_dict({}),
    ):
        with pytest.raises(dg.WorkerError, match="the pipeline is closed; make a new one"):
            call()
    assert pipe.stage is not None and pipe.optimizer is not None


def make_and_close(rank: int, world_size: int) -> dict[str, list[tuple[int, int]]]:
    """What is held after each of two pipelines, for each way to end one."""
    found = {}
    for end in ENDS:
        start = time.monotonic()
        found[end] = []
        for _ in range(2):
            use_and_close(rank, world_size, end)
            found[end].append(held())
        assert time.monotonic() - start < 0.9 * TIMEOUT_S, f"{end}: somebody waited in vain"
    return found


def test_closed_pipelines_hold_neither_files_nor_threads(capfd: pytest.CaptureFixture[str]) -> None:
    for found in run_ranks(make_and_close, 2, timeout_s=90):
        (files, threads) = found["with"][0]
        for end, each in found.items():
            for more_files, more_threads in each:
                assert more_files <= files and more_threads <= threads, (end, found)
    assert capfd.readouterr().err == ""  # gloo writes there by itself


def close_beside_an_open_one(rank: int, world_size: int) -> bool:
    """Close one, go on with another; then leave one open to the end, as programs do."""
    first, second = make(rank, world_size), make(rank, world_size)
    train(first)
    first.flush()
    first.close()
    train(second)
    second.flush()
    third = make(rank, world_size)
    train(third)
    third.flush()
    alike = zip(second.stage.parameters(), third.stage.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in alike)


def test_closing_one_leaves_the_others_alone() -> None:
    assert run_ranks(close_beside_an_open_one, 2, timeout_s=60) == [True] * 2


def flush_late(rank: int, world_size: int, method: dg.Method) -> None:
    stage = into_stages(mlp(), world_size)[rank]
    pipe = dg.DistributedPipeline(
        stage, cross_entropy, OPTIMIZERS["sgd"], method=method, timeout_s=TIMEOUT_S
    )
    train(pipe)
    if rank == 0:
        time.sleep(1.0)
    pipe.flush()


@pytest.mark.parametrize("method", [dg.BP(), dg.DDG()], ids=repr)
def test_a_rank_may_leave_after_its_flush(method: dg.Method) -> None:
    run_ranks(flush_late, 2, args=(method,))
