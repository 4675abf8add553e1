"""A link over torch.distributed: one direction, from one rank to another.

A message is a header and a payload. The header is four numbers (bytes of its text, bytes of the
payload, batch, phase) and a JSON text: identity of the batch, share, structure, scalars, and for
each tensor its dtype, shape, memory order and whether it requires a gradient. The text is the same
for most messages, so both ends remember the last ones. The payload is the tensors' bytes. From a
GPU the scalars travel as one tensor more, since the header could not be written before the GPU has
computed them.

    sender    isend(header)  isend(payload)          waits for older messages only
    receiver  irecv(header)  irecv(payload)          posted before the message is asked for

The receiver must name a size before it knows the message, so both ends agree on a *capacity* of the
header (the size of the largest so far) and one of the payload (the largest of the last few). A
smaller payload (a short last batch) travels in a buffer of that size. Of a larger payload the first
``capacity`` bytes travel as usual, and the rest follows in a third piece. In steady state a message
has two pieces, and a tensor that crosses a boundary alone travels without a copy. A small payload
is copied to the end of its header, because a copy takes less time than a second piece.

Messages of one link arrive in the order they were sent; nothing relies on tags, which NCCL ignores.
Each direction has a process group of its own. Headers need a group whose tensors live on the CPU.
"""

from __future__ import annotations

import json
import re
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from delaygrad.boundary import from_row_major, to_row_major
from delaygrad.errors import TransportError
from delaygrad.transport.message import Message

_HEADER_BYTES = 4096  # the first capacity: room for some 60 tensors
_NUMBERS = struct.Struct("<4q")  # bytes of the text, bytes of the payload, batch, phase
_ALIGNMENT_BYTES = 64
_SMALL_BYTES = 1 << 16  # the largest payload that travels behind its header
_BYTE = torch.uint8
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_form = lru_cache(maxsize=32)(json.loads)


class Lane(Protocol):
    """What carries the bytes of a link: a process group, or gloo's backend without one."""

    def send(self, tensors: list[Tensor], to: int, tag: int, /) -> dist.Work:
        """Start to send one tensor to a rank."""

    def recv(self, tensors: list[Tensor], source: int, tag: int, /) -> dist.Work:
        """Start to receive one tensor from a rank."""


@dataclass(frozen=True)
class Wire:
    """The two ends of a link, and the groups that carry its bytes.

    Attributes:
        peer: the other end's rank in both groups.
        peer_name: what error messages call it.
        content: what travels: "an activation", "an error gradient".
        header_group: a group on the CPU (gloo).
        payload_group: a group for ``device``; may be the same.
        device: where the tensors of this end live.
        timeout_s: seconds to wait for the other end.
        remembered: number of latest payloads, the largest of which sets the capacity; with two,
            one short message does not reduce it.
    """

    peer: int
    peer_name: str
    content: str
    header_group: Lane
    payload_group: Lane
    device: torch.device
    timeout_s: float
    remembered: int = 2

    def wait(self, work: dist.Work, doing: str) -> None:
        """Wait for a transfer.

        Raises:
            TransportError: the transfer took longer than ``timeout_s``, or the peer is gone.
        """
        try:
            work.wait(*self._limit)
        except RuntimeError as error:
            raise self.failure(doing, error) from error

    def next_capacity(self, latest: Iterable[int]) -> int:
        """Return the capacity on which both ends agree after messages of these sizes.

        It is 0 if payloads are small and travel behind their headers. It is also 0 on an
        accelerator: there a receive that waits would be a kernel that keeps the device busy, so
        it is posted only when the header has arrived.
        """
        largest = max(latest)
        return 0 if not self.is_on_cpu or self.is_small(largest) else largest

    def is_small(self, num_bytes: int) -> bool:
        """Whether a payload travels behind its header, if no receive is posted for it."""
        return self.is_on_cpu and num_bytes <= _SMALL_BYTES

    @cached_property
    def is_on_cpu(self) -> bool:
        """Whether the tensors of this end live on the CPU."""
        return self.device.type == "cpu"

    @cached_property
    def _limit(self) -> tuple[timedelta, ...]:
        """With a limit NCCL would block the host; its watchdog has one."""
        return (timedelta(seconds=self.timeout_s),) if self.is_on_cpu else ()

    def failure(self, doing: str, error: RuntimeError) -> TransportError:
        """Describe an error: what, in which direction, with which peer."""
        text = str(error)
        if "imed out" in text or "imeout" in text:
            reason = f"nothing for {self.timeout_s:g} s; it hangs, or is slower than the timeout"
        else:
            reason = f"it is gone; see its own error ({reason_of(error)})"
        return TransportError(f"{doing} {self.content} {self.peer_name} failed: {reason}")


def reason_of(error: RuntimeError) -> str:
    """Return the informative line of a gloo error."""
    line = str(error).strip().splitlines()[-1].split(". ")[0]
    return re.sub(r"^\[\S+\] ", "", line)  # gloo begins with its own file and line


class WireSender:
    """Send messages without waiting.

    Args:
        wire: where to.
        in_flight: messages that may be in flight before a send waits for the oldest, at least 1.
            Each keeps its tensors in memory.
    """

    def __init__(self, wire: Wire, in_flight: int = 2) -> None:
        self._wire, self._max_in_flight = wire, in_flight
        self._capacity, self._header_capacity = 0, _HEADER_BYTES
        self._latest: deque[int] = deque(maxlen=wire.remembered)  # sizes of payloads
        self._in_flight: deque[list[tuple[dist.Work, Tensor]]] = deque()
        self._form: dict[str, Any] = {}
        self._text = b""  # of the form

    def send(self, message: Message) -> None:
        """Start sending a message; its tensors must not change afterwards.

        Raises:
            TransportError: the peer is gone, or did not receive an earlier message.
        """
        while len(self._in_flight) >= self._max_in_flight:
            self._finish_oldest()
        tensors, scalars = message.tensors, message.scalars
        on_device = scalars is not None and not self._wire.is_on_cpu
        if on_device:  # a header would have to wait for the device
            tensors = (*tensors, scalars)
        parts = [None if t is None else to_row_major(t.detach()) for t in tensors]
        payload = self._pack([part[0].reshape(-1) for part in parts if part is not None])
        form = {
            "identity": message.identity,
            "share": message.share,
            "structure": message.structure,
            "scalars": on_device or scalars.tolist() if scalars is not None else None,
            "tensors": [
                None if t is None or part is None else _describe(*part, wanted=t.requires_grad)
                for part, t in zip(parts, tensors, strict=True)
            ],
        }
        if form != self._form:
            self._form, self._text = form, _ENCODER.encode(form).encode()
        num_bytes = payload.numel()
        self._latest.append(num_bytes)
        is_behind = self._capacity == 0 and self._wire.is_small(num_bytes)
        behind, alone = (payload, payload[:0]) if is_behind else (None, payload)
        numbers = len(self._text), num_bytes, message.batch_index, message.phase
        self._start(_encode(numbers, self._text, behind, self._header_capacity), alone)

    def finish(self) -> None:
        """Wait until the peer has received everything."""
        while self._in_flight:
            self._finish_oldest()

    def _pack(self, flat: list[Tensor]) -> Tensor:
        if len(flat) == 1:
            return flat[0].view(_BYTE)
        sizes = [_padded(tensor.nbytes) for tensor in flat]
        buffer = torch.empty(sum(sizes), dtype=_BYTE, device=self._wire.device)
        offset = 0
        for tensor, size in zip(flat, sizes, strict=True):
            buffer[offset : offset + tensor.nbytes].copy_(tensor.view(_BYTE))
            offset += size
        return buffer

    def _start(self, header: Tensor, payload: Tensor) -> None:
        wire = self._wire
        headers = _cut(header, self._header_capacity)
        self._header_capacity = max(self._header_capacity, header.numel())
        payloads = _cut(payload, self._capacity)
        ahead = int(self._capacity > 0)  # pieces of the payload for which a receive is posted
        self._capacity = wire.next_capacity(self._latest)
        works: list[tuple[dist.Work, Tensor]] = []
        self._in_flight.append(works)
        for group, pieces in (
            (wire.header_group, headers[:1]),
            (wire.payload_group, payloads[:ahead]),
            (wire.header_group, headers[1:]),
            (wire.payload_group, payloads[ahead:]),
        ):
            for piece in pieces:
                try:
                    works.append((group.send([piece], wire.peer, 0), piece))
                except RuntimeError as error:
                    raise wire.failure("sending", error) from error

    def _finish_oldest(self) -> None:
        for work, _ in self._in_flight.popleft():
            self._wire.wait(work, "sending")


class WireReceiver:
    """Receive messages, with the next one already on its way."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._capacity, self._header_capacity = 0, _HEADER_BYTES
        self._latest: deque[int] = deque(maxlen=wire.remembered)  # sizes of payloads
        self._nothing = self._empty(0)
        self._header = bytearray()
        self._header_work: dist.Work | None = None
        self._payload_work: dist.Work | None = None
        self._post()

    def receive(self) -> Message:
        """Return the next message.

        Raises:
            TransportError: no message came within the timeout, or the sender is gone.
        """
        wire = self._wire
        if self._header_work is None:
            self._post()
        assert self._header_work is not None
        wire.wait(self._header_work, "receiving")
        if self._payload_work is not None:
            wire.wait(self._payload_work, "receiving")
        text_bytes, num_bytes, batch_index, phase = _NUMBERS.unpack_from(self._header)
        start = _padded(_NUMBERS.size + text_bytes)
        is_behind = self._capacity == 0 and wire.is_small(num_bytes)
        self._complete_header(start + is_behind * num_bytes)
        form = _form(bytes(self._header[_NUMBERS.size : _NUMBERS.size + text_bytes]))
        payload = self._payload
        if is_behind and num_bytes:
            payload = torch.frombuffer(self._header, dtype=_BYTE, offset=start, count=num_bytes)
        elif num_bytes > self._capacity:
            rest = self._empty(num_bytes - self._capacity)
            wire.wait(self._irecv(rest, wire.payload_group), "receiving")
            payload = torch.cat([payload, rest]) if self._capacity else rest
        self._latest.append(num_bytes)
        self._capacity = wire.next_capacity(self._latest)
        self._post_ahead()
        described, scalars = form["tensors"], form["scalars"]
        tensors = _unpack(payload, described, shared=is_behind or len(described) > 1)
        if scalars is True:
            tensors, scalars = tensors[:-1], tensors[-1]
        elif scalars is not None:
            scalars = torch.tensor(scalars, dtype=torch.float64)
        about = form["structure"], phase, form["identity"], scalars, form["share"]
        return Message(batch_index, tensors, *about)

    def _complete_header(self, num_bytes: int) -> None:
        """Receive what is missing of a header of this size."""
        if num_bytes > self._header_capacity:
            rest = torch.empty(num_bytes - self._header_capacity, dtype=_BYTE)
            self._wire.wait(self._irecv(rest, self._wire.header_group), "receiving")
            self._header = bytearray(self._header) + rest.numpy().tobytes()
            self._header_capacity = num_bytes

    def _post_ahead(self) -> None:
        """Post the next receive, unless the sender has left; ``receive`` then raises."""
        try:
            self._post()
        except TransportError:
            self._header_work = None

    def _post(self) -> None:
        self._header = bytearray(self._header_capacity)
        into = torch.frombuffer(self._header, dtype=_BYTE)
        self._header_work = self._irecv(into, self._wire.header_group)
        if self._capacity:
            self._payload = self._empty(self._capacity)
            self._payload_work = self._irecv(self._payload, self._wire.payload_group)
        else:
            self._payload, self._payload_work = self._nothing, None

    def _empty(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=_BYTE, device=self._wire.device)

    def _irecv(self, buffer: Tensor, group: Lane) -> dist.Work:
        try:
            return group.recv([buffer], self._wire.peer, 0)
        except RuntimeError as error:
            raise self._wire.failure("receiving", error) from error


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _describe(view: Tensor, order: list[int], *, wanted: bool) -> list[object]:
    return [str(view.dtype).removeprefix("torch."), list(view.shape), order, wanted]


def _encode(
    numbers: tuple[int, int, int, int], text: bytes, behind: Tensor | None, capacity: int
) -> Tensor:
    """Return a header with a payload behind it, in a buffer of ``capacity`` bytes or more."""
    end = _NUMBERS.size + len(text)
    start = _padded(end)
    num_bytes = 0 if behind is None else behind.numel()
    buffer = bytearray(max(start + num_bytes, capacity))
    _NUMBERS.pack_into(buffer, 0, *numbers)
    buffer[_NUMBERS.size : end] = text
    if behind is not None:
        buffer[start : start + num_bytes] = behind.numpy().data
    return torch.frombuffer(buffer, dtype=_BYTE)


def _cut(buffer: Tensor, capacity: int) -> list[Tensor]:
    """Return ``capacity`` bytes, padded if there are fewer, and the remaining bytes, if any."""
    num_bytes = buffer.numel()
    if num_bytes < capacity:
        short, buffer = buffer, buffer.new_empty(capacity)
        buffer[:num_bytes].copy_(short)
    if num_bytes <= capacity or capacity == 0:
        return [buffer] if buffer.numel() else []
    return [buffer[:capacity], buffer[capacity:]]


def _unpack(
    payload: Tensor, described: list[list[object] | None], *, shared: bool
) -> tuple[Tensor | None, ...]:
    """Return the tensors; copied if they would share the payload's memory."""
    tensors: list[Tensor | None] = []
    offset = 0
    for entry in described:
        if entry is None:
            tensors.append(None)
            continue
        name, shape, order, wanted = entry
        assert isinstance(name, str) and isinstance(shape, list) and isinstance(order, list)
        dtype = getattr(torch, name)
        num_bytes = prod(shape) * dtype.itemsize
        part = payload
        if num_bytes != payload.numel():
            part = payload[offset : offset + num_bytes]
        flat = part.view(dtype)
        if shared:  # a checkpoint cannot hold one memory seen as several types
            flat = flat.clone()
        tensors.append(from_row_major(flat.view(shape), order).requires_grad_(bool(wanted)))
        offset += _padded(num_bytes)
    return tuple(tensors)
