"""What goes wrong on one rank ends on every rank, soon, with words that name the culprit."""

from __future__ import annotations

import copy
import os
import re
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from networks import OPTIMIZERS, batches, into_stages, mlp
from ranks import RankOutcome, run_ranks, run_ranks_raw
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg

TIMEOUT_S = 3.0
SLEEP_S = 8.0


class Trouble(nn.Module):
    """Raises, or sleeps, in the forward of its ``when``-th batch."""

    def __init__(self, when: int, sleep_s: float = 0.0) -> None:
        super().__init__()
        self.when, self.sleep_s, self.count = when, sleep_s, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.count - 1 == self.when:
            if not self.sleep_s:
                raise ZeroDivisionError("planted")
            time.sleep(self.sleep_s)
        return x


def start_together(stage: nn.Module) -> None:
    """Get a first optimizer's slow imports done, so that short timeouts measure no start-up."""
    OPTIMIZERS["nesterov"](list(stage.parameters()))
    dist.barrier()


def make(
    rank: int, world_size: int, *, trouble: nn.Module | None = None, timeout_s: float = TIMEOUT_S
) -> dg.DistributedPipeline:
    torch.manual_seed(0)
    stage = into_stages(mlp(), world_size)[rank]
    start_together(stage)
    if trouble is not None:
        stage = nn.Sequential(stage, trouble)
    return dg.DistributedPipeline(stage, cross_entropy, OPTIMIZERS["nesterov"], timeout_s=timeout_s)


def train(pipe: dg.DistributedPipeline, num_batches: int) -> None:
    for inputs, targets in batches(num_batches, (6,)):
        pipe.step(inputs, targets)


def last_line(outcome: RankOutcome) -> str:
    """The error itself, without the traceback."""
    assert outcome.error is not None, f"rank {outcome.rank} raised nothing: {outcome}"
    assert not outcome.timed_out
    return outcome.error.strip().splitlines()[-1]


def assert_told(outcome: RankOutcome, pattern: str) -> None:
    assert re.search(pattern, last_line(outcome)), last_line(outcome)


# --- a rank that raises --------------------------------------------------------------------------


def raise_on_stage_1(rank: int, world_size: int) -> None:
    train(make(rank, world_size, trouble=Trouble(3) if rank == 1 else None), 10)


def test_a_raising_module_ends_all_ranks_and_is_named_once() -> None:
    outcomes = run_ranks_raw(raise_on_stage_1, 3, timeout_s=40)
    assert_told(
        outcomes[1],
        r"WorkerError: \[stage 1, rank 1, iteration 3, action 1F3\] layer 1 \(Trouble\): "
        r"ZeroDivisionError: planted",
    )
    assert 'raise ZeroDivisionError("planted")' in (outcomes[1].error or "")  # its own traceback
    for rank in (0, 2):
        assert_told(
            outcomes[rank],
            rf"TransportError: \[stage {rank}, rank {rank}, iteration [34], action {rank}[FB]\d\] "
            r".* stage 1 \(rank 1\) failed: it is gone; see its own error",
        )
        assert outcomes[rank].elapsed_s < TIMEOUT_S + 15


# --- a rank that is killed -----------------------------------------------------------------------


class Dies(nn.Module):
    """Takes its process with it, like the kernel's out-of-memory killer."""

    def __init__(self, when: int) -> None:
        super().__init__()
        self.when, self.count = when, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.count - 1 == self.when:
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def die_on_stage_2(rank: int, world_size: int) -> None:
    train(make(rank, world_size, trouble=Dies(20) if rank == 2 else None, timeout_s=15.0), 100)


def test_a_killed_rank_ends_all_others() -> None:
    outcomes = run_ranks_raw(die_on_stage_2, 3, timeout_s=60)
    assert outcomes[2].exit_code == -signal.SIGKILL
    for rank, peer in ((1, 2), (0, 1)):  # the news travels from neighbour to neighbour
        assert_told(
            outcomes[rank],
            rf"TransportError: \[stage {rank}, rank {rank}, iteration \d+, action {rank}[FB]\d+\] "
            rf".* stage {peer} \(rank {peer}\) failed: it is gone",
        )
        assert outcomes[rank].elapsed_s < 15.0 + 15


def make_all_but_one(rank: int, world_size: int) -> None:
    if rank == 1:
        start_together(nn.Linear(1, 1))
        raise ZeroDivisionError("planted")
    make(rank, world_size)


def test_a_rank_that_never_makes_its_pipeline_is_given_up() -> None:
    outcomes = run_ranks_raw(make_all_but_one, 2, timeout_s=40)
    assert_told(
        outcomes[0],
        r"TransportError: \[rank 0\] another rank did not make its pipeline: it is gone, "
        "or took longer than 3 s; see its own error",
    )


# --- a rank that hangs ---------------------------------------------------------------------------


def hang_on_stage_1(rank: int, world_size: int) -> None:
    pipe = make(rank, world_size, trouble=Trouble(4, sleep_s=SLEEP_S) if rank == 1 else None)
    train(pipe, 4)
    start = time.monotonic()
    try:
        train(pipe, 10)
    except dg.TransportError as error:
        waited = time.monotonic() - start
        raise RuntimeError(f"waited {waited:.1f} s: {error}") from error


def test_a_hanging_neighbour_is_given_up_after_the_timeout() -> None:
    outcomes = run_ranks_raw(hang_on_stage_1, 3, timeout_s=50)
    # The others give up; the sleeper wakes and finds them gone.
    assert_told(
        outcomes[1], r"\[stage 1, rank 1, iteration 4, action 1[FB]\d\] .* failed: it is gone"
    )
    told = [last_line(outcomes[rank]) for rank in (0, 2)]
    pattern = (
        r"waited (\S+) s: \[stage {k}, rank {k}, iteration [45], action {k}[FB]\d\] "
        r"receiving .* from stage 1 \(rank 1\) failed: nothing for 3 s"
    )
    for k, line in zip((0, 2), told, strict=True):
        match = re.search(pattern.replace("{k}", str(k)), line)
        assert match, line
        assert TIMEOUT_S - 0.5 < float(match[1]) < SLEEP_S


# --- ranks that disagree -------------------------------------------------------------------------


def step_a_different_number_of_times(rank: int, world_size: int) -> None:
    pipe = make(rank, world_size)
    train(pipe, 5 if rank == 0 else 4)
    pipe.flush()
    dist.barrier()  # stay: the neighbour must notice by itself


def test_a_different_number_of_steps_is_noticed_within_the_timeout() -> None:
    outcomes = run_ranks_raw(step_a_different_number_of_times, 2, timeout_s=30)
    assert_told(
        outcomes[0],
        r"TransportError: \[stage 0, rank 0, iteration 5, action 0B4\] the neighbour has taken "
        r"fewer steps \(it called flush before batch 4, this rank went on\)",
    )
    assert outcomes[0].elapsed_s < TIMEOUT_S + 15


def leave_after_fewer_steps(rank: int, world_size: int, leaver: int) -> None:
    pipe = make(rank, world_size)
    train(pipe, 3)
    pipe.flush()
    train(pipe, 2 if rank == leaver else 40)
    pipe.flush()


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_a_rank_that_ends_after_fewer_steps_is_not_said_to_have_failed(leaver: int) -> None:
    outcomes = run_ranks_raw(leave_after_fewer_steps, 3, timeout_s=60, args=(leaver,))
    assert outcomes[leaver].ok or leaver == 0  # the first stage still waits for error gradients
    for rank in {leaver - 1, leaver + 1} & {0, 1, 2}:
        assert_told(
            outcomes[rank],
            rf"TransportError: \[stage {rank}, rank {rank}, iteration \d, action {rank}[FB]\d\] "
            r"the neighbour has taken fewer steps \(it called flush before batch 5, this rank went "
            r"on\)",
        )


def error_of(call: Any) -> str:
    try:
        call()
    except dg.DelaygradError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def mistakes(rank: int, world_size: int) -> dict[str, str]:
    """Several mistakes that leave the processes alive, in one group."""
    told: dict[str, str] = {}
    stage = into_stages(mlp(), world_size)[rank]
    start_together(stage)

    def pipe_with(**settings: Any) -> dg.DistributedPipeline:
        return dg.DistributedPipeline(
            copy.deepcopy(stage),  # a stage belongs to one pipeline
            cross_entropy,
            OPTIMIZERS["sgd"],
            timeout_s=TIMEOUT_S,
            **settings,
        )

    told["methods"] = error_of(lambda: pipe_with(method=dg.DDG() if rank else dg.BP()))

    # Only one rank steps: it gives up after the timeout, and says so ever after.
    pipe = pipe_with()
    if rank == 1:
        told["alone"] = error_of(lambda: train(pipe, 1))
        told["afterwards"] = error_of(lambda: train(pipe, 1))
    dist.barrier()

    # Rank 1 evaluates, then trains, one batch less than rank 0, and nothing of it shows at once.
    ((inputs, _),) = batches(1, (6,))
    pipe = pipe_with()
    for _ in range(3 - rank):
        pipe.predict(inputs)
    train(pipe, 1)
    told["predictions"] = error_of(lambda: pipe.predict(inputs))
    pipe = pipe_with()
    told["flush"] = error_of(lambda: (train(pipe, 3 - rank), pipe.flush(), train(pipe, 1)))
    dist.barrier()
    return told


def test_mistakes_are_told_in_clear_words() -> None:
    below, above = run_ranks(mistakes, 2, timeout_s=60)
    for told in (below, above):
        assert told["methods"] == (
            "ScheduleError: the ranks were given different methods (stage 0: BP(), stage 1: DDG())"
        )
    assert re.match(
        r"TransportError: \[stage 1, rank 1, iteration 0, action 1F0\] receiving an activation "
        r"from stage 0 \(rank 0\) failed: nothing for 3 s; it hangs, or is slower than the timeout",
        above["alone"],
    )
    assert re.match(
        r"WorkerError: the pipeline stopped in the middle of its work \(TransportError: .*; "
        "make a new one and load its last state",
        above["afterwards"],
    )
    assert below["predictions"] == "nothing was raised"
    assert re.fullmatch(
        r"TransportError: \[stage 1, rank 1, iteration 1, prediction\] the neighbour has not "
        r"called predict as often as this rank \(received: a prediction of iteration 0\); .*",
        above["predictions"],
    )
    assert re.fullmatch(
        r"TransportError: \[stage 1, rank 1, iteration 2, action 1F2\] the neighbour has not "
        r"called flush at the same step \(batch: 2, last flush here: before batch 2, there: "
        r"before batch 0\); .*",
        above["flush"],
    )
    assert "TransportError" in below["flush"]


def test_a_pipeline_outside_a_process_group_is_refused() -> None:
    stage = nn.Linear(6, 6)
    told = error_of(lambda: dg.DistributedPipeline(stage, cross_entropy, OPTIMIZERS["sgd"]))
    assert told.startswith("TransportError: torch.distributed is not initialised; start the ranks")


def flush_and_load(rank: int, world_size: int) -> None:
    pipe = make(rank, world_size, timeout_s=20.0)
    train(pipe, 6)
    later = pipe.state_dict()
    for _ in range(2):  # notices of flushes before batches 6 and 8 are still under way
        pipe.flush()
        pipe.load_state_dict(later)
        train(pipe, 2)
    pipe.flush()


def test_a_flush_before_a_loaded_state_does_not_end_the_training() -> None:
    run_ranks(flush_and_load, 3, timeout_s=60)
