"""Boundaries of unusual kinds cross a network as they cross a queue."""

from __future__ import annotations

from dataclasses import replace
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


LARGE = 20_000  # float32 numbers: 80,000 bytes, more than travel behind a header


def send_sizes(rank: int, world_size: int, lengths: list[int]) -> list[int]:
    """Send so many numbers in each message: the bytes of all pieces, or the sums that arrived."""
    world = dist.group.WORLD
    wire = Wire(1 - rank, "the other", "an activation", world, world, torch.device("cpu"), 20.0)
    if rank == 1:
        receiver = WireReceiver(wire)
        arrived = [receiver.receive().tensors[0] for _ in lengths]
        return [int(tensor.sum()) for tensor in arrived if tensor is not None]
    sent = []

    class Counting:
        def send(self, tensors: list[Tensor], *where: int) -> Any:
            sent.append(tensors[0].numel())
            return world.send(tensors, *where)

    sender = WireSender(replace(wire, header_group=Counting(), payload_group=Counting()))
    for batch, size in enumerate(lengths):
        sender.send(Message(batch, (torch.ones(size),)))
    sender.finish()
    return sent


def test_one_large_message_does_not_make_the_later_ones_large() -> None:
    lengths = [LARGE, 2 * LARGE, LARGE, LARGE, LARGE]
    sent, arrived = run_ranks(send_sizes, 2, args=(lengths,))
    assert arrived == lengths
    pieces = [num_bytes for num_bytes in sent if num_bytes != 4096]  # without the headers
    one = 4 * LARGE
    assert pieces == [one, one, one, 2 * one, 2 * one, one]  # the larger of the last two


def test_small_payloads_travel_behind_their_headers() -> None:
    """A header has 4096 bytes, or what the largest has needed so far; 192 of them are text."""
    lengths = [0, 10, 5000, 10, LARGE, 10, 10, 10, 16_384]
    sent, arrived = run_ranks(send_sizes, 2, args=(lengths,))
    assert arrived == lengths
    text = 192
    header, larger = text + 20_000, text + 65_536
    assert sent == [
        *(4096, 4096),
        *(4096, header - 4096),  # what there is room for, and the rest
        header,
        *(header, 4 * LARGE),  # a large one: its payload by itself
        *(header, 4 * LARGE),  # the other end has a receive posted for one more of that size
        *(header, 4 * LARGE),
        header,
        *(header, larger - header),
    ]
