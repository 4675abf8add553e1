"""The loss of the last stage: its parts under micro-batches, and what is wrong with it.

With M micro-batches the loss of a batch is the sum of the losses of its parts, with shares:

    loss(batch) = sum over parts p of share(p) · loss_fn(outputs of p, targets of p)

    loss_weight        share(p)
    None or "mean"     samples of p / samples of the batch: for a mean over samples
    "sum"              1: for a sum over samples
    a function f       f(targets of p) / its sum over the batch: for a mean over valid items

The loss of a part with share 0 is not used, so a mean over no items (NaN) is harmless. The first
batches and every hundredth are checked: the sum must equal the loss of the whole batch.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from delaygrad.boundary import Tree, flatten, parts_of, unflatten
from delaygrad.errors import DelaygradError, NonFiniteLossError, StageError
from delaygrad.random_stream import RandomStream
from delaygrad.stage.network import LossFunction, evaluating, require_scalar

LossWeight: TypeAlias = Literal["mean", "sum"] | Callable[[Any], float | Tensor] | None
"""How parts of a batch combine: see above."""

_FIRST, _EVERY = 4, 100  # iterations whose parts are compared with the whole
_TOLERANCE = 1e-4  # of the loss; sums in float32 differ by less


class StageLoss:
    """Compute the loss of a part of a batch, times its share.

    Args:
        loss_fn: the user's.
        device: where the stage computes.
        micro_batches: parts of a batch.
        loss_weight: see above; "mean", given explicitly, switches the check off.
        allow_nonfinite: let NaN and infinity pass.

    Raises:
        StageError: ``loss_weight`` is something else.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        *,
        device: torch.device,
        micro_batches: int,
        loss_weight: LossWeight = None,
        allow_nonfinite: bool = False,
    ) -> None:
        if loss_weight not in (None, "mean", "sum") and not callable(loss_weight):
            raise StageError(
                f"loss_weight is neither a rule nor a function (loss_weight: {loss_weight!r}); "
                'pass "mean", "sum" or a function of the targets'
            )
        self._loss_weight = loss_weight
        self._loss_fn, self._device, self._micro_batches = loss_fn, device, micro_batches
        self._compares = micro_batches > 1 and loss_weight != "mean"
        self._finite = None if allow_nonfinite else FiniteLoss(micro_batches)
        self._parts: list[tuple[Tree, Tree, Tensor]] | None = None  # of a batch to compare
        self.extras: list[Any] = []
        """What ``loss_fn`` returned beside the losses of the newest batch."""

    def shares(self, parts: Sequence[tuple[Tree, float]]) -> list[float]:
        """Return the share of each part of a batch.

        Args:
            parts: for each part its targets, and its share of the samples.

        Raises:
            StageError: a weight is negative or not finite.
        """
        if self._loss_weight is None or self._loss_weight == "mean":
            return [share for _, share in parts]
        if self._loss_weight == "sum":
            return [1.0 for _ in parts]
        weights = [float(self._loss_weight(targets)) for targets, _ in parts]
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise StageError(
                "loss_weight must return finite numbers, none below 0 (weights of the "
                f"micro-batches: {weights})"
            )
        total = sum(weights)
        return [weight / total if total else 0.0 for weight in weights]

    def part(
        self, outputs: Any, targets: Any, share: float, *, keep_extras: bool = False
    ) -> Tensor:
        """Return a part's contribution to the loss of its batch; little is checked.

        Raises:
            StageError: the loss is not a 0-d tensor.
        """
        if not share:
            return _nothing(outputs) * share
        returned = self._loss_fn(outputs, targets)
        if keep_extras and isinstance(returned, tuple) and len(returned) == 2:
            self.extras.append(tree_map_only(Tensor, Tensor.detach, returned[1]))
        loss = require_scalar(returned)
        return loss if share == 1 else loss * share

    def begin(self, batch_index: int) -> None:
        """Note which part of which batch comes next."""
        if self.extras and batch_index % self._micro_batches == 0:
            self.extras = []
        if not self._compares:
            return
        iteration, part = divmod(batch_index, self._micro_batches)
        if part == 0:
            due = iteration < _FIRST or iteration % _EVERY == 0
            self._parts = [] if due else None
        elif self._parts is not None and len(self._parts) != part:
            self._parts = None  # a resumed run begins in the middle of a batch

    def __call__(self, outputs: Any, targets: Any, share: float) -> Tensor:
        """Return the part's contribution to the loss of its batch.

        Raises:
            StageError: the loss is not a 0-d tensor; or the parts of a batch do not add up.
            NonFiniteLossError: it is NaN or infinite.
        """
        if self._parts is not None:
            kept = _copied(outputs)
        loss = self.part(outputs, targets, share, keep_extras=True)
        if self._finite is not None:
            self._finite.look(loss)
        if self._parts is not None:
            self._parts.append((kept, targets, loss.detach()))
            if len(self._parts) == self._micro_batches:
                self._require_whole(self._parts)
                self._parts = None
        return loss

    def of_batch(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss of a whole batch that was predicted; nothing is checked or kept."""
        loss_fn = self._loss_fn
        with evaluating(loss_fn) if isinstance(loss_fn, nn.Module) else nullcontext():
            if self._micro_batches == 1 or self._loss_weight != "mean":
                return require_scalar(loss_fn(outputs, targets))  # the parts add up to it
            num_parts = min(self._micro_batches, len(flatten(targets)[0][0]))
            parts = parts_of((outputs, targets), num_parts)
            return torch.stack(
                [require_scalar(loss_fn(*part)) * share for part, share in parts]
            ).sum()

    def settle(self) -> None:
        """Check the losses that are still on a device; waits for the device.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite.
        """
        if self._finite is not None:
            self._finite.settle()

    def _require_whole(self, parts: list[tuple[Tree, Tree, Tensor]]) -> None:
        whole = self._of_whole(parts)
        if whole is None:
            return
        contributions = [float(loss) for _, _, loss in parts]
        combined, expected = sum(contributions), float(whole)
        largest = max((float(t.abs().max()) for o, _, _ in parts for t in _floating(o)), default=0)
        # A loss may be the small difference of two large outputs.
        margin = _TOLERANCE * max(abs(expected), sum(map(abs, contributions)))
        margin += 16 * torch.finfo(whole.dtype).eps * max(largest, abs(expected))
        if math.isfinite(expected) and not abs(combined - expected) <= margin:
            raise StageError(
                "the losses of the micro-batches do not add up to that of the batch (micro-batches "
                f"together: {combined:g}, batch: {expected:g}); give the pipeline loss_weight=: a "
                'function that counts the valid items of targets, "sum" if loss_fn is a sum over '
                'samples, or "mean" if the mean over the micro-batches is what you want'
            )

    def _of_whole(self, parts: list[tuple[Tree, Tree, Tensor]]) -> Tensor | None:
        """Compute the loss of the whole batch; None if it cannot be computed reliably."""
        joined = _joined([(outputs, targets) for outputs, targets, _ in parts])
        if joined is None:
            return None
        loss_fn = self._loss_fn
        if isinstance(loss_fn, nn.Module) and any(True for _ in loss_fn.buffers()):
            loss_fn = copy.deepcopy(loss_fn)  # it may count what it has seen
        stream = RandomStream(self._device, None)
        before = stream.state()
        with torch.no_grad(), stream.replaying(before):
            try:
                whole = require_scalar(loss_fn(*joined))
            except Exception:  # the user's code may not accept a whole batch
                return None
            after = stream.state()
        random = any(not torch.equal(before[kind], after[kind]) for kind in before)
        return None if random or not whole.is_floating_point() else whole


class FiniteLoss:
    """Find NaN and infinity without waiting for a device.

    On the CPU a loss is checked at once. On another device it is copied to the host in the
    background, and checked in a later step, when the copy has arrived.

    Args:
        micro_batches: parts of a batch, for the message.
    """

    def __init__(self, micro_batches: int) -> None:
        self._micro_batches = micro_batches
        self._under_way: deque[tuple[Tensor, torch.Event]] = deque()

    def look(self, loss: Tensor) -> None:
        """Take a loss.

        Raises:
            NonFiniteLossError: this loss, or an earlier one, is NaN or infinite.
        """
        if loss.is_cpu:
            self._require(loss)
            return
        loss = loss.detach()
        while self._under_way and self._under_way[0][1].query():
            self._require(self._under_way.popleft()[0])
        on_host = torch.empty((), dtype=loss.dtype, pin_memory=True)
        on_host.copy_(loss, non_blocking=True)
        copied = torch.Event(loss.device)
        copied.record()
        self._under_way.append((on_host, copied))

    def settle(self) -> None:
        """Check all losses taken so far; waits for the device."""
        while self._under_way:
            loss, copied = self._under_way.popleft()
            copied.synchronize()
            self._require(loss)

    def _require(self, loss: Tensor) -> None:
        value = loss.item()
        if math.isfinite(value):
            return
        parts = "" if self._micro_batches == 1 else ", or give loss_weight= if a part has no item"
        raise NonFiniteLossError(
            f"the loss is not finite (loss: {value}); lower the learning rate, use fewer stages or "
            f"a warm-up{parts}; allow_nonfinite_loss=True lets it pass"
        )


def _nothing(outputs: Any) -> Tensor:
    """Return 0, with gradients that are 0."""
    return torch.stack([tensor.mul(0).sum() for tensor in _floating(outputs)]).sum()


def _floating(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in flatten(outputs)[0] if tensor.is_floating_point()]


def _copied(outputs: Any) -> Any:
    """Copy outputs, since ``loss_fn`` may work in place; None if they are not made of tensors."""
    try:
        tensors, structure = flatten(outputs)
    except DelaygradError:
        return None
    return unflatten(structure, [tensor.detach().clone() for tensor in tensors])


def _joined(parts: list[tuple[Tree, Tree]]) -> tuple[Tree, Tree] | None:
    """Join outputs and targets of the parts again; None where the joined batch may be wrong."""
    flat = [flatten((outputs, targets)) for outputs, targets in parts]
    structure = flat[0][1]
    if any(
        outputs is None or found != structure
        for (outputs, _), (_, found) in zip(parts, flat, strict=True)
    ):
        return None
    for (tensors, _), (_, targets) in zip(flat, parts, strict=True):
        samples = flatten(targets)[0][0].shape[0]
        for tensor in tensors:
            # Samples first: (B, ...), or in a table (B * items, classes).
            length = tensor.shape[0] if tensor.dim() else -1
            if length != samples and (length % samples or length < 0 or tensor.dim() > 2):
                return None
    columns = zip(*(tensors for tensors, _ in flat), strict=True)
    outputs, targets = unflatten(structure, [torch.cat(column) for column in columns])
    return outputs, targets
