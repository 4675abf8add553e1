"""Delayed gradients the slow way, from the paper's equations and from nothing of ours.

For every iteration s a copy of the whole network keeps w@s. Whole-network backpropagation of batch
s, by plain autograd on that copy, gives all blocks of the gradient at once; block k is then applied
to the true network at iteration s + delay(k).

    paper               here
    w^t                 self.stages, at the start of step t
    grad_G(k) f(w^s)    self._blocks[s][k]
    K - k               delay(k) = K-1-k, stages counted from 0

Beyond the paper: with ``slack`` delay(k) = (K-1-k)(1 + slack); with ``micro_batches`` M > 1, s and
t count parts of batches, and a stage steps once for M of them; ``boundary_dtype`` rounds what
crosses a boundary, both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""Seeds of the stages' random streams: stage k adds k + 1 of these; a single stage adds none."""

Gradients = list[Tensor | None]


class Rounded(torch.autograd.Function):
    """Round a value on its way up and its gradient on its way down."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return value.to(dtype).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype).to(grad.dtype), None


class NaiveDelayedGradients:
    """K stages and the rule, with every quantity of the paper kept in full.

    Args:
        stages: copied; they must never have been trained through.
        seed: what ``torch.manual_seed`` was last called with.
        weight: of a part's loss, from its targets; not 0.
        delayed: False applies every block at once: backpropagation.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        loss_fn: Callable[[Any, Any], Tensor],
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        seed: int = 0,
        delayed: bool = True,
        slack: int = 0,
        micro_batches: int = 1,
        boundary_dtype: torch.dtype | None = None,
        weight: Callable[[Any], int] = len,
    ) -> None:
        self.stages = copy.deepcopy(list(stages))
        self.optimizers = [
            make_optimizer(list(stage.parameters())) if list(stage.parameters()) else None
            for stage in self.stages
        ]
        last = len(self.stages) - 1
        self.delays = [(last - k) * (1 + slack) if delayed else 0 for k in range(last + 1)]
        self._micro_batches = micro_batches
        self._boundary_dtype = boundary_dtype
        self._weight = weight
        self._loss_fn = loss_fn
        self._random_states = [
            torch.Generator().manual_seed((seed + GOLDEN_RATIO * n) % 2**63).get_state()
            for n in (range(1, last + 2) if last else [0])
        ]
        self._blocks: dict[int, list[Gradients]] = {}
        self._sums: list[Gradients] = [[None] * len(list(s.parameters())) for s in self.stages]
        self._iteration = 0
        self._first = 0

    def step(self, inputs: Any, targets: Any) -> Tensor:
        """One iteration; returns the loss of this batch at w@t."""
        if self._micro_batches == 1:
            return self._tick(inputs, targets, 1)
        losses = []
        parts = self._micro_batches
        for x, y in zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
            # A clone, since a matrix product may round otherwise where memory is not aligned.
            x = x if len(self.stages) == 1 else x.clone()
            losses.append(self._tick(x, y, self._weight(y) / self._weight(targets)))
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total

    def _tick(self, inputs: Any, targets: Any, share: float) -> Tensor:
        t, self._iteration = self._iteration, self._iteration + 1
        loss, self._blocks[t] = self._backpropagate(inputs, targets, share)
        self._apply(t)
        return loss

    def flush(self) -> None:
        """Apply what is outstanding: block k of batch s at iteration s + delay(k), as ever."""
        for t in range(self._iteration, self._iteration + self.delays[0]):
            self._apply(t)
        self._first = self._iteration

    def predict(self, inputs: Any) -> Any:
        with torch.no_grad():
            for stage in copy.deepcopy(self.stages):
                inputs = stage.eval()(inputs)
        return inputs

    def gradients(self) -> list[Gradients]:
        return [[p.grad for p in stage.parameters()] for stage in self.stages]

    def _apply(self, t: int) -> None:
        for k, stage in enumerate(self.stages):
            s = t - self.delays[k]
            if s >= self._iteration or t >= self._iteration and s < self._first:
                continue  # in a drain: this stage has used everything, or there was nothing
            block: Gradients = [None] * len(list(stage.parameters()))
            if s >= self._first:
                block = self._blocks[s][k]
            sums, last_part = self._sums[k], (s + 1) % self._micro_batches == 0
            for i, (parameter, gradient) in enumerate(zip(stage.parameters(), block, strict=True)):
                total = sums[i]
                if s % self._micro_batches and total is not None and gradient is not None:
                    gradient = total + gradient
                # A parameter that has been frozen since does not move.
                sums[i] = gradient if parameter.requires_grad else None
                if last_part or s < self._first:
                    parameter.grad = sums[i]
            optimizer = self.optimizers[k]
            if s >= self._first and last_part and optimizer is not None:
                optimizer.step()

    def _backpropagate(
        self, inputs: Any, targets: Any, share: float
    ) -> tuple[Tensor, list[Gradients]]:
        at_s = copy.deepcopy(self.stages)
        for parameter in (p for stage in at_s for p in stage.parameters()):
            parameter.grad = None
        value = copy.deepcopy(inputs)
        outside = torch.get_rng_state()
        for k, stage in enumerate(at_s):
            torch.set_rng_state(self._random_states[k])
            value = stage(value)
            if k == len(at_s) - 1:
                value = self._loss_fn(value, targets)
                value = value * share if share != 1 else value
            elif self._boundary_dtype is not None:
                value = Rounded.apply(value, self._boundary_dtype)
            self._random_states[k] = torch.get_rng_state()
        torch.set_rng_state(outside)
        value.backward()
        # The forward has moved the running statistics once, on the copy; and what else it moves.
        with torch.no_grad():
            for stage, stage_at_s in zip(self.stages, at_s, strict=True):
                for ours, moved in zip(stage.buffers(), stage_at_s.buffers(), strict=True):
                    ours.copy_(moved)
                for ours, moved in zip(stage.parameters(), stage_at_s.parameters(), strict=True):
                    ours.data.copy_(moved)
        return value.detach(), [[p.grad for p in stage.parameters()] for stage in at_s]
