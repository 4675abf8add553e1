"""Record buffers and autocast settings, so that a forward can be replayed exactly.

A forward may read buffers that change: in forwards (the vectors of ``spectral_norm``), or between
forwards, by hand. It may also run under autocast. Both are recorded when the forward runs. A
recomputation, or a resumed run, replays it with these values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from delaygrad.boundary import Tree, flatten
from delaygrad.errors import StageError
from delaygrad.stash.batches import Pending
from delaygrad.stash.forward_effects import is_checked, same_values
from delaygrad.stash.walk import Walk

_SMALL = 1024  # elements; comparing so many takes no longer than calling the comparison
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type in which autocast computes at this point; None if autocast is off.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     autocast_dtype(torch.device("cpu"))
        torch.bfloat16
    """
    enabled = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


class BufferStash:
    """Keep the buffers as they are before each forward; one copy while they do not change.

    The statistics of a BatchNorm in training mode are left out: it changes them and never reads
    them. PyTorch does not count all changes (not those through ``.data``, nor those of fused
    observers). So the contents of small buffers are compared before each forward. Larger buffers
    are compared before some forwards (``is_checked``), and before each once such a change was
    found.

    Args:
        module: the stage's network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._walk = Walk(module)
        # The buffer, its writes as PyTorch counts them, a copy.
        self._kept: dict[str, tuple[Tensor | None, int, Tensor | None]] = {}
        self._uncounted: set[str] = set()
        self._forwards = 0

    def enter(self) -> dict[str, Tensor | None]:
        """Return ``current``, just before a forward; large buffers may go uncompared."""
        everything = is_checked(self._forwards)
        self._forwards += 1
        return self.current(everything=everything)

    def current(self, *, everything: bool = True) -> dict[str, Tensor | None]:
        """Return copies of the buffers by name; earlier copies are reused if nothing changed."""
        kept = {}
        for prefix, owner in self._walk.named_modules():
            if not owner._buffers:  # the usual case, and this runs in every forward
                continue
            is_norm = isinstance(owner, _NormBase)
            if is_norm and owner.training:
                continue
            for name, buffer in owner._buffers.items():
                path = _path(prefix, name)
                old = self._kept.get(path)
                writes = 0 if buffer is None else buffer._version
                # PyTorch does not count what a BatchNorm writes into its statistics.
                if old is None or is_norm or old[0] is not buffer or old[1] != writes:
                    copy = None if buffer is None else buffer.detach().clone()
                    old = buffer, writes, copy
                elif buffer is not None and old[2] is not None:
                    compared = everything or buffer.numel() <= _SMALL or path in self._uncounted
                    if compared and not same_values(buffer, old[2]):
                        self._uncounted.add(path)
                        old = buffer, writes, buffer.detach().clone()
                kept[path] = old
        self._kept = kept
        return {path: copy for path, (_, _, copy) in kept.items()}


def checksum(outputs: Tree) -> list[int] | None:
    """Return a sum over the bits of each tensor; None where two runs may differ in bits.

    They may differ on accelerators, whose kernels may add in another order each time.

    Example:
        >>> checksum([torch.tensor([1, 2]), torch.tensor([True])])
        [3, 1]
    """
    tensors, _ = flatten(outputs)
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return None
    sums = []
    for tensor in tensors:
        real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        sums.append(int(real.view(_INTEGERS[real.element_size()]).sum()))
    return sums


def require_same_outputs(first: list[int] | None, outputs: Tree) -> None:
    """Raise if a replayed forward gave other outputs than the first forward.

    Args:
        first: checksum of the first outputs; None compares nothing.
        outputs: of the replay.

    Raises:
        StageError: they differ.
    """
    if first is not None and checksum(outputs) != first:
        raise StageError(
            "the forward gave another output when it was computed again (recompute); it depends on "
            "random numbers that are not torch's default ones, or on state that is in no parameter "
            "or buffer: use torch's default generators and buffers, or leave out recompute"
        )


@contextmanager
def as_it_was(module: nn.Module, batch: Pending, device: torch.device) -> Iterator[None]:
    """Within the block, the module has the buffers and autocast settings of a batch's forward.

    Buffers are copies, and live parameters have the values that they had. Afterwards everything is
    as before the block. Random numbers and parameter versions are handled elsewhere.
    """
    dtype = batch.autocast
    with ExitStack() as stack:
        stack.enter_context(_copied_buffers(module, batch.buffers))
        if batch.weights is not None:
            stack.enter_context(batch.weights.replayed())
        stack.enter_context(torch.autocast(device.type, dtype=dtype, enabled=dtype is not None))
        yield


@contextmanager
def _copied_buffers(module: nn.Module, past: dict[str, Tensor | None]) -> Iterator[None]:
    places = [
        (_path(prefix, name), owner, name, buffer)
        for prefix, owner in module.named_modules()
        for name, buffer in owner._buffers.items()
    ]
    copies: dict[int, Tensor] = {}  # one for each, also where one is held twice
    with torch.no_grad():
        for path, owner, name, buffer in places:
            value = past.get(path, buffer)
            if value is None or buffer is None:
                owner._buffers[name] = None if value is None else value.clone()
            else:
                owner._buffers[name] = copies.setdefault(id(buffer), value.clone())
    try:
        yield
    finally:
        for _, owner, name, buffer in places:
            owner._buffers[name] = buffer


def _path(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
