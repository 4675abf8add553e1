"""Layers that sleep their forward and backward: they show the schedule and the transport alone.

K stages that sleep do not compete for cores, so that K may be larger than their number.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_LARGEST_DEBT_S = 2e-4  # more is not the timer's grain but a core that was busy: that counts


class _Alarm:
    """Sleep for a time that is right on average: what one nap takes too long, the next makes up."""

    def __init__(self) -> None:
        self._debt_s = 0.0

    def sleep(self, seconds: float) -> None:
        start = time.perf_counter()
        time.sleep(max(0.0, seconds - self._debt_s))
        late = time.perf_counter() - start - seconds
        self._debt_s = min(max(0.0, self._debt_s + late), _LARGEST_DEBT_S)


_ALARM = _Alarm()


class _Nap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.backward_s = backward_s
        _ALARM.sleep(forward_s)
        return x + weight

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        _ALARM.sleep(ctx.backward_s)
        return grad_outputs[0], grad_outputs[0].sum().reshape(1), None, None


class SleepingLayer(nn.Module):
    """Add one parameter to the input, slowly.

    The seconds are of a sample; a micro-batch takes its share.
    """

    def __init__(self, forward_s: float, backward_s: float) -> None:
        super().__init__()
        self.forward_s, self.backward_s = forward_s, backward_s
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to the same shape."""
        size = len(x)
        forward_s, backward_s = size * self.forward_s, size * self.backward_s
        slept: Tensor = _Nap.apply(x, self.weight, forward_s, backward_s)  # type: ignore[no-untyped-call]
        return slept


def sleeper(seconds: Sequence[tuple[float, float]], *, batch_size: int) -> nn.Sequential:
    """Build a network of sleeping layers, from the seconds of each for a batch.

    Example:
        >>> list(dict(sleeper([(0.01, 0.02)] * 2, batch_size=4).named_children()))
        ['nap0', 'nap1']
    """
    layers = [SleepingLayer(f / batch_size, b / batch_size) for f, b in seconds]
    return nn.Sequential(OrderedDict((f"nap{index}", layer) for index, layer in enumerate(layers)))
