"""Boundaries of unusual kinds cross a network as they cross a queue."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from exact import assert_same
from ranks import run_ranks
from torch import Tensor, nn

import delaygrad as dg
from delaygrad.transport import Message
from delaygrad.transport.wire import Wire, WireReceiver, WireSender

# As many tensors as samples. The first header fits about 60; it grows, is too large, grows again.
SIZES = (3, 200, 200, 2, 200, 1, 300, 5)


class Wide(nn.Linear):
    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        rows = super().forward(inputs)
        return {f"row_{index}": row.clone() for index, row in enumerate(rows)}


class Narrow(nn.Linear):
    def forward(self, rows: dict[str, Tensor]) -> Tensor:
        return super().forward(torch.stack(list(rows.values())))


class Conjugate(nn.Linear):
    """Hands on views that say "conjugate" or "negative" in a bit of theirs."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        numbers = torch.view_as_complex(super().forward(inputs).view(-1, 2, 2)).conj()
        assert numbers.is_conj() and numbers.imag.is_neg()
        return numbers, numbers.imag


class Real(nn.Linear):
    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        numbers, imaginary = both
        return super().forward(torch.cat([torch.view_as_real(numbers).flatten(1), imaginary], 1))


def build(kind: str) -> list[nn.Module]:
    torch.manual_seed(0)
    if kind == "wide":
        return [Wide(3, 4), Narrow(4, 2)]
    return [Conjugate(3, 4), Real(6, 2)]


def make_optimizer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def drive(pipe: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    told = []
    for size in SIZES:
        inputs = torch.randn(size, 3, generator=generator)
        told.append(pipe.step(inputs, torch.ones(size, 2)))
        told.append(pipe.predict(inputs))
    pipe.flush()
    return told


def train_and_predict(rank: int, world_size: int) -> dict[str, Any]:
    found = {}
    for kind in ("wide", "conjugate"):
        with dg.DistributedPipeline(
            build(kind)[rank], nn.functional.mse_loss, make_optimizer, timeout_s=20
        ) as pipe:
            found[kind] = drive(pipe), pipe.stage.state_dict()
    return found


def test_many_tensors_and_lazy_views_cross_as_in_one_process() -> None:
    below, above = run_ranks(train_and_predict, 2, timeout_s=60)
    for kind in ("wide", "conjugate"):
        pipe = dg.LocalPipeline(build(kind), nn.functional.mse_loss, make_optimizer)
        assert_same(above[kind][0], drive(pipe))
        for found, stage in zip((below, above), pipe.stages, strict=True):
            assert_same(found[kind][1], stage.state_dict())


LENGTHS = [10, 1000, 10, 10, 10]  # of messages, in float32 numbers
HEADER_BYTES = 4096


def send_sizes(rank: int, world_size: int) -> list[int]:
    """On rank 0 the bytes of all payload pieces, on rank 1 the numbers that arrived."""
    world = dist.group.WORLD
    wire = Wire(1 - rank, "the other", "an activation", world, world, torch.device("cpu"), 20.0)
    if rank == 1:
        receiver = WireReceiver(wire)
        arrived = [receiver.receive().tensors[0] for _ in LENGTHS]
        return [int(tensor.sum()) for tensor in arrived if tensor is not None]
    sent, isend = [], dist.isend

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel())
        return isend(tensor, *args, **kwargs)

    dist.isend = counting
    sender = WireSender(wire)
    for batch, size in enumerate(LENGTHS):
        sender.send(Message(batch, (torch.ones(size),)))
    sender.finish()
    return [num_bytes for num_bytes in sent if num_bytes != HEADER_BYTES]


def test_one_large_message_does_not_make_the_later_ones_large() -> None:
    sent, arrived = run_ranks(send_sizes, 2)
    assert arrived == LENGTHS
    assert sent == [40, 40, 3960, 4000, 4000, 40]  # the larger of the last two, then what is left
