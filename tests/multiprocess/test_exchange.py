"""Plain values and tensors between ranks, without pickles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor

from delaygrad.runtime import exchange

VALUES = [None, {"a": [1.1, math.inf, "ä"], "b": True}, "x" * 10_000]


def exchange_values(rank: int, world_size: int) -> dict[str, Any]:
    return {
        "all": exchange.all_gather(VALUES[rank]),
        "first": exchange.gather(VALUES[rank]),
        "one": exchange.broadcast(VALUES[1] if rank == 0 else "overwritten"),
    }


def test_every_rank_gets_what_it_should() -> None:
    for rank, found in enumerate(run_ranks(exchange_values, 3)):
        assert found == {"all": VALUES, "first": [] if rank else VALUES, "one": VALUES[1]}


def own_tensors(rank: int) -> dict[str, Tensor]:
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(rank))
    one_value = {"scale": torch.tensor(1.5, dtype=torch.bfloat16), "count": torch.tensor(7)}
    last_channels = image.to(memory_format=torch.channels_last)
    return {f"image{rank}": last_channels, **(one_value if rank else {})}


def exchange_tensors(rank: int, world_size: int) -> list[dict[str, Tensor]]:
    return exchange.gather_tensors(own_tensors(rank))


def test_tensors_arrive_to_the_bit() -> None:
    first, second = run_ranks(exchange_tensors, 2)
    assert second == []
    for rank, found in enumerate(first):
        expected = own_tensors(rank)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, check_stride=False)


def exchange_an_object(rank: int, world_size: int) -> None:
    exchange.all_gather({1, 2})


def test_what_is_no_plain_value_is_refused() -> None:
    with pytest.raises(RuntimeError, match="TypeError: .*set.* is not JSON serializable"):
        run_ranks(exchange_an_object, 1)
