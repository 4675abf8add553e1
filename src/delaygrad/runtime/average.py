"""The average of a stage's gradients over its replicas, begun while the backward still runs.

    backward      layer 3 | layer 2 | layer 1 | layer 0 |
    all_reduce              [ bucket of 3 and 2 ][ bucket of 1 and 0 ]
    the stage                                           | send | average | update

The buckets travel in one order on all replicas, however early each starts. So a replica decides for
itself when a bucket starts. ``average`` is the wait for unfinished buckets. Before it, a rank
with several stages runs the backward passes of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from delaygrad.errors import StageError, TransportError
from delaygrad.stash import ParameterVersion, move_gradient
from delaygrad.transport.wire import reason_of

__all__ = ["Average"]

_BUCKET_BYTES = 4 << 20


@dataclass
class _Bucket:
    """Gradients that travel together: flags of those that there are, and their values."""

    parameters: list[nn.Parameter] = field(default_factory=list)
    num_bytes: int = 0
    incomplete: set[int] = field(default_factory=set)
    present: list[float] = field(default_factory=list)
    flat: Tensor = field(default_factory=lambda: torch.empty(0))
    work: dist.Work | None = None


class Average:
    """The average of one stage's gradients.

    A gradient that only some replicas have counts as 0 on the others; what no replica has is None.

    Args:
        parameters: of the stage.
        group: the ranks that hold the stage, on its device.
        count: of these ranks.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, count: int
    ) -> None:
        self._parameters, self._group, self._count = parameters, group, count
        self._buckets: list[_Bucket] = []
        self._started = 0
        self._begun = False
        self._overlaps: bool | None = None  # until a backward has shown it

    @contextmanager
    def during(self, version: ParameterVersion | None) -> Iterator[None]:
        """Within the block, a backward completes the gradients; then all are on their way.

        The first backward shows whether each gradient comes in one piece (a reentrant checkpoint
        gives several), and thus whether a bucket may start before the end.

        Args:
            version: that the forward has met; None is the live parameters themselves.

        Raises:
            TransportError: a replica is gone.
            StageError: a gradient comes in several pieces, but did not in the first backward.
        """
        self._buckets, self._started, self._begun = self._new_buckets(), 0, True
        live_of = {id(p): p for p in self._parameters}
        met: list[nn.Parameter] = list(self._parameters)
        if version is not None:
            live_of = {id(slot.alias): slot.live for slot in version.slots}
            met = [slot.alias for slot in version.slots]
        bucket_of = {id(p): bucket for bucket in self._buckets for p in bucket.parameters}
        pieces: Counter[int] = Counter()

        def complete(parameter: nn.Parameter) -> None:
            live = live_of[id(parameter)]
            pieces[id(live)] += 1
            if self._overlaps and pieces[id(live)] > 1:
                raise StageError(
                    "a gradient comes in several pieces, after the replicas have begun to average "
                    "the first; checkpoint with use_reentrant=False"
                )
            if self._overlaps and id(live) in bucket_of:
                if parameter is not live:
                    move_gradient(live, parameter)
                bucket_of[id(live)].incomplete.discard(id(live))
                self._start(complete=True)

        wanted = {id(p): p for p in met if p.requires_grad}.values()
        handles = [
            p.register_post_accumulate_grad_hook(complete)  # type: ignore[no-untyped-call]
            for p in wanted
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if self._overlaps is None:
            self._overlaps = max(pieces.values(), default=1) == 1
        self._start(complete=False)

    def finish(self) -> bool:
        """Wait for unfinished buckets, and put them into ``.grad``; say whether there were any.

        Raises:
            TransportError: a replica is gone or late.
        """
        begun, self._begun = self._begun, False
        for bucket in self._buckets if begun else ():
            assert bucket.work is not None
            with _others():
                bucket.work.wait()
            self._take(bucket)
        self._buckets = []
        return begun

    def _new_buckets(self) -> list[_Bucket]:
        """Share the parameters out; the backward most often begins with the last."""
        buckets: list[_Bucket] = []
        filling: dict[torch.dtype, _Bucket] = {}
        for parameter in reversed(self._parameters):
            if not parameter.requires_grad:
                continue
            bucket = filling.get(parameter.dtype)
            if bucket is None or bucket.num_bytes + parameter.nbytes > _BUCKET_BYTES:
                bucket = filling[parameter.dtype] = _Bucket()
                buckets.append(bucket)
            bucket.parameters.append(parameter)
            bucket.num_bytes += parameter.nbytes
            bucket.incomplete.add(id(parameter))
        return buckets

    def _start(self, *, complete: bool) -> None:
        """Start the next buckets, as far as they are complete; or all that are left."""
        while self._started < len(self._buckets):
            bucket = self._buckets[self._started]
            if complete and bucket.incomplete:
                return
            self._started += 1
            alike = bucket.parameters
            bucket.present = [float(p.grad is not None) for p in alike]
            flags = torch.tensor(bucket.present, dtype=alike[0].dtype, device=alike[0].device)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
            bucket.flat = torch.cat([flags, *(gradient.reshape(-1) for gradient in gradients)])
            with _others():
                bucket.work = dist.all_reduce(bucket.flat, group=self._group, async_op=True)

    def _take(self, bucket: _Bucket) -> None:
        sizes = [len(bucket.parameters), *(parameter.numel() for parameter in bucket.parameters)]
        flags, *parts = torch.split(bucket.flat, sizes)
        # Where all have a gradient here, some replica has each: nothing to read, no wait for a GPU.
        wanted = bucket.present if all(bucket.present) else flags.tolist()
        for parameter, part, found in zip(bucket.parameters, parts, wanted, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(part.view_as(parameter.grad)).div_(self._count)
            elif found:
                parameter.grad = part.view_as(parameter).div(self._count)


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TransportError(
            f"another replica is gone or late; see its own error ({reason_of(error)})"
        ) from error
