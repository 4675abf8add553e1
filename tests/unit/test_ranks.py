"""The harness of the multi-process tests: it must report the truth, and never hang."""

from __future__ import annotations

import os
import signal
import time
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks, run_ranks_raw


@dataclass
class Parcel:
    """Defined here, so that sending one needs this very file on the other side."""

    tensor: torch.Tensor


def _sum_over_ranks(rank: int, world_size: int, parcel: Parcel) -> Parcel:
    mine = parcel.tensor * (rank + 1)
    total = mine.clone()
    dist.all_reduce(total)
    assert world_size == dist.get_world_size()
    return Parcel(torch.stack([mine, total]))


def _raise_on_rank_1(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ArithmeticError("the sum does not add up")
    dist.recv(torch.zeros(1), src=1)


def _hang(rank: int, world_size: int) -> None:
    time.sleep(3600)


def _wait_for_rank_1(rank: int, world_size: int) -> str:
    if rank == 1:
        time.sleep(3600)
    with pytest.raises(RuntimeError) as caught:
        dist.recv(torch.zeros(1), src=1)
    return str(caught.value)


def _die_on_rank_1(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(3)
    dist.recv(torch.zeros(1), src=1)


def _exit_with_rank(rank: int, world_size: int) -> None:
    dist.barrier()  # all have joined
    time.sleep(0.5)  # and left the barrier
    os._exit(rank + 3)


def _fail_in_pytests_way(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError):
        pass


def _warn(rank: int, world_size: int) -> None:
    warnings.warn("never mind", UserWarning, stacklevel=1)


def _return_a_lambda(rank: int, world_size: int) -> Any:
    return lambda: None


def test_results_come_back_in_rank_order_with_their_tensors() -> None:
    results = run_ranks(_sum_over_ranks, 3, args=(Parcel(torch.ones(2)),))

    for rank, parcel in enumerate(results):
        expected = torch.tensor([[rank + 1.0] * 2, [6.0] * 2])
        torch.testing.assert_close(parcel.tensor, expected, rtol=0, atol=0)


def test_exception_of_a_rank_is_raised_with_its_traceback_and_survivors_are_killed() -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 of 2 failed") as caught:
        run_ranks(_raise_on_rank_1, 2, timeout_s=60)

    assert "in _raise_on_rank_1" in str(caught.value)
    assert "ArithmeticError: the sum does not add up" in str(caught.value)
    assert time.monotonic() - start < 50, "the waiting rank was not killed before the timeout"


def test_hang_ends_at_the_timeout_and_names_the_ranks() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] of 2 still running after 5 s"):
        run_ranks(_hang, 2, timeout_s=5)
    assert 5 <= time.monotonic() - start < 20


def test_killed_rank_is_reported_and_its_peer_comes_to_its_own_end() -> None:
    peer, killed = run_ranks_raw(_wait_for_rank_1, 2, kill=(1, 0.5))

    assert killed.exit_code == -signal.SIGKILL and not killed.ok and killed.error is None
    assert 0.5 <= killed.elapsed_s < 20
    assert peer.ok and "peer" in peer.result
    assert peer.elapsed_s < 20


def test_exit_without_a_traceback_is_reported() -> None:
    outcomes = run_ranks_raw(_exit_with_rank, 2)
    assert [o.exit_code for o in outcomes] == [3, 4]
    assert not any(o.ok for o in outcomes)


def test_silent_death_is_blamed_before_the_exception_it_causes_in_a_peer() -> None:
    with pytest.raises(RuntimeError, match="rank 1 of 2 failed: exit code 3, no traceback"):
        run_ranks(_die_on_rank_1, 2)


def test_failure_raised_by_pytest_inside_a_rank_is_an_error_of_that_rank() -> None:
    with pytest.raises(RuntimeError, match="DID NOT RAISE"):
        run_ranks(_fail_in_pytests_way, 1)


def test_warnings_are_errors_in_the_ranks_too() -> None:
    with pytest.raises(RuntimeError, match="UserWarning: never mind"):
        run_ranks(_warn, 1)


@pytest.mark.filterwarnings("ignore:never mind:UserWarning")
def test_ranks_obey_the_warning_filters_of_the_test() -> None:
    assert run_ranks(_warn, 1) == [None]


def test_result_that_cannot_be_sent_is_an_error_of_its_rank() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rank 0 of 1 failed.*pickle"):
        run_ranks(_return_a_lambda, 1)


def test_function_inside_a_function_is_refused_before_anything_starts() -> None:
    def inner(rank: int, world_size: int) -> None: ...

    with pytest.raises(TypeError, match="not a top-level function"):
        run_ranks(inner, 1)
