"""A link over torch.distributed: one direction, from one rank to another.

A message is a header and a payload. The header is a JSON text after its length: batch, phase,
identity of the batch, structure, scalars, and for each tensor its dtype, shape, memory order and
whether it requires a gradient. The payload is the tensors' bytes. From a GPU the scalars travel as
one tensor more, since the header could not be written before the GPU has computed them.

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
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from delaygrad.boundary import from_row_major, to_row_major
from delaygrad.errors import TransportError
from delaygrad.transport.message import Message

_HEADER_BYTES = 4096  # the first capacity: room for some 60 tensors
_LENGTH_BYTES = 16  # of the text, and of the payload behind it, 8 each
_ALIGNMENT_BYTES = 64
_SMALL_BYTES = 1 << 16  # the largest payload that travels behind its header


@dataclass(frozen=True)
class Wire:
    """The two ends of a link, and the groups that carry its bytes.

    Attributes:
        peer: the other end's rank in the default group.
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
    header_group: dist.ProcessGroup
    payload_group: dist.ProcessGroup
    device: torch.device
    timeout_s: float
    remembered: int = 2

    def wait(self, work: dist.Work, doing: str) -> None:
        """Wait for a transfer.

        Raises:
            TransportError: the transfer took longer than ``timeout_s``, or the peer is gone.
        """
        try:
            if self.device.type == "cpu":
                work.wait(timedelta(seconds=self.timeout_s))
            else:  # a time limit would make NCCL block the host; its watchdog has the limit
                work.wait()
        except RuntimeError as error:
            raise self.failure(doing, error) from error

    def next_capacity(self, latest: Iterable[int]) -> int:
        """Return the capacity on which both ends agree after messages of these sizes.

        It is 0 if payloads are small and travel behind their headers. It is also 0 on an
        accelerator: there a receive that waits would be a kernel that keeps the device busy, so
        it is posted only when the header has arrived.
        """
        largest = max(latest)
        return 0 if self.device.type != "cpu" or self.is_small(largest) else largest

    def is_small(self, num_bytes: int) -> bool:
        """Whether a payload travels behind its header, if no receive is posted for it."""
        return self.device.type == "cpu" and num_bytes <= _SMALL_BYTES

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

    def send(self, message: Message) -> None:
        """Start sending a message; its tensors must not change afterwards.

        Raises:
            TransportError: the peer is gone, or did not receive an earlier message.
        """
        while len(self._in_flight) >= self._max_in_flight:
            self._finish_oldest()
        tensors, scalars = message.tensors, message.scalars
        on_device = scalars is not None and self._wire.device.type != "cpu"
        if on_device:  # a header would have to wait for the device
            tensors = (*tensors, scalars)
        parts = [None if t is None else to_row_major(t.detach()) for t in tensors]
        payload = self._pack([part[0].reshape(-1) for part in parts if part is not None])
        header: dict[str, Any] = {
            "batch": message.batch_index,
            "phase": message.phase,
            "identity": message.identity,
            "structure": message.structure,
            "bytes": payload.numel(),
            "tensors": [
                None if t is None or part is None else _describe(*part, wanted=t.requires_grad)
                for part, t in zip(parts, tensors, strict=True)
            ],
        }
        if message.share != 1:
            header["share"] = message.share
        if scalars is not None:
            header["scalars"] = on_device or scalars.tolist()
        self._latest.append(payload.numel())
        if self._capacity == 0 and self._wire.is_small(payload.numel()):
            behind, payload = payload, payload[:0]
        else:
            behind = torch.empty(0, dtype=torch.uint8)
        self._start(_encode(header, behind, self._header_capacity), payload)

    def finish(self) -> None:
        """Wait until the peer has received everything."""
        while self._in_flight:
            self._finish_oldest()

    def _pack(self, flat: list[Tensor]) -> Tensor:
        if len(flat) == 1:
            return flat[0].view(torch.uint8)
        sizes = [_padded(tensor.nbytes) for tensor in flat]
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=self._wire.device)
        offset = 0
        for tensor, size in zip(flat, sizes, strict=True):
            buffer[offset : offset + tensor.nbytes].copy_(tensor.view(torch.uint8))
            offset += size
        return buffer

    def _start(self, header: Tensor, payload: Tensor) -> None:
        wire = self._wire
        header, more_header = _cut(header, self._header_capacity)
        self._header_capacity += more_header.numel()
        payload, more_payload = _cut(payload, self._capacity)
        self._capacity = wire.next_capacity(self._latest)
        pieces = [
            (header, wire.header_group),
            (payload, wire.payload_group),
            (more_header, wire.header_group),
            (more_payload, wire.payload_group),
        ]
        works: list[tuple[dist.Work, Tensor]] = []
        self._in_flight.append(works)
        for piece, group in pieces:
            if not piece.numel():
                continue
            try:
                work = dist.isend(piece, wire.peer, group=group)
            except RuntimeError as error:
                raise wire.failure("sending", error) from error
            assert work is not None
            works.append((work, piece))

    def _finish_oldest(self) -> None:
        for work, _ in self._in_flight.popleft():
            self._wire.wait(work, "sending")


class WireReceiver:
    """Receive messages, with the next one already on its way."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._capacity, self._header_capacity = 0, _HEADER_BYTES
        self._latest: deque[int] = deque(maxlen=wire.remembered)  # sizes of payloads
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
        header, behind = self._read_header()
        payload, num_bytes = self._payload, header["bytes"]
        shared = behind.numel() > 0 or len(header["tensors"]) > 1
        if behind.numel():
            payload = behind
        elif num_bytes > self._capacity:
            rest = self._empty(num_bytes - self._capacity)
            wire.wait(self._irecv(rest, wire.payload_group), "receiving")
            payload = torch.cat([payload, rest]) if self._capacity else rest
        self._latest.append(num_bytes)
        self._capacity = wire.next_capacity(self._latest)
        self._post_ahead()
        tensors = _unpack(payload, header["tensors"], shared=shared)
        scalars = header.get("scalars")
        if scalars is True:
            tensors, scalars = tensors[:-1], tensors[-1]
        elif scalars is not None:
            scalars = torch.tensor(scalars, dtype=torch.float64)
        about = header["structure"], header["phase"], header["identity"], scalars
        return Message(header["batch"], tensors, *about, header.get("share", 1.0))

    def _read_header(self) -> tuple[dict[str, Any], Tensor]:
        """Return the header, and the payload behind it, which may be empty."""
        buffer = self._header
        text_bytes, payload_bytes = buffer[:_LENGTH_BYTES].view(torch.int64).tolist()
        start = _padded(_LENGTH_BYTES + text_bytes)
        end = start + payload_bytes
        if end > self._header_capacity:
            rest = torch.empty(end - self._header_capacity, dtype=torch.uint8)
            self._wire.wait(self._irecv(rest, self._wire.header_group), "receiving")
            buffer = torch.cat([buffer, rest])
            self._header_capacity = end
        text = buffer[_LENGTH_BYTES : _LENGTH_BYTES + text_bytes].numpy().tobytes()
        header: dict[str, Any] = json.loads(text)
        return header, buffer[start:end]

    def _post_ahead(self) -> None:
        """Post the next receive, unless the sender has left; ``receive`` then raises."""
        try:
            self._post()
        except TransportError:
            self._header_work = None

    def _post(self) -> None:
        self._header = torch.empty(self._header_capacity, dtype=torch.uint8)
        self._header_work = self._irecv(self._header, self._wire.header_group)
        self._payload = self._empty(self._capacity)
        self._payload_work = (
            self._irecv(self._payload, self._wire.payload_group) if self._capacity else None
        )

    def _empty(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._wire.device)

    def _irecv(self, buffer: Tensor, group: dist.ProcessGroup) -> dist.Work:
        try:
            work = dist.irecv(buffer, self._wire.peer, group=group)
        except RuntimeError as error:
            raise self._wire.failure("receiving", error) from error
        assert work is not None
        return work


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _describe(view: Tensor, order: list[int], *, wanted: bool) -> list[object]:
    return [str(view.dtype).removeprefix("torch."), list(view.shape), order, wanted]


def _encode(header: dict[str, object], behind: Tensor, capacity: int) -> Tensor:
    """Return a header with a payload behind it, in a buffer of ``capacity`` bytes or more."""
    text = json.dumps(header, separators=(",", ":")).encode()
    start = _padded(_LENGTH_BYTES + len(text))
    end = start + behind.numel()
    buffer = torch.empty(max(end, capacity), dtype=torch.uint8)
    lengths = len(text).to_bytes(8, "little") + behind.numel().to_bytes(8, "little")
    buffer[: _LENGTH_BYTES + len(text)] = torch.frombuffer(
        bytearray(lengths + text), dtype=torch.uint8
    )
    buffer[start:end] = behind
    return buffer


def _cut(buffer: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Return ``capacity`` bytes, padded if there are fewer, and the remaining bytes."""
    num_bytes = buffer.numel()
    if num_bytes < capacity:
        short, buffer = buffer, buffer.new_empty(capacity)
        buffer[:num_bytes].copy_(short)
    return buffer[:capacity], buffer[capacity:]


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
        flat = payload[offset : offset + num_bytes].view(dtype)
        if shared:  # a checkpoint cannot hold one memory seen as several types
            flat = flat.clone()
        tensors.append(from_row_major(flat.view(shape), order).requires_grad_(bool(wanted)))
        offset += _padded(num_bytes)
    return tuple(tensors)
