"""Layers that sleep instead of computing: times that a test knows beforehand."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn


class Sleep(nn.Module):
    def __init__(self, forward_s: float, backward_s: float) -> None:
        super().__init__()
        self.durations = forward_s, backward_s

    def forward(self, input: Tensor) -> Tensor:
        return SleepFunction.apply(input, *self.durations)


class SleepFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.backward_s = backward_s
        time.sleep(forward_s)
        return input * 1

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.backward_s)
        return grad_output, None, None
