"""Any of the tick methods the slow way: each stage copied for each micro-batch, nothing shared.

tick t, stage k    forward micro-batch t - offset(k) with the met parameters v[k]
                   backward micro-batch t - offset(k) - lag(k), with what stage k+1 sent for it
                   after the last part of a batch: update

rule                                          here
v[k] = w[k] + h[k] (w[k] - w_prev[k])         ``horizon``
replay: the kept input, today's parameters    ``replays``
the forward's graph, today's parameters       ``lives``
what stage k sends down, times beta           ``beta``
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Rule = Callable[[int, int], float]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class Passage:
    """A micro-batch at a stage: a copy of the stage as it was met, its input and what came out."""

    stage: nn.Module
    x: Tensor
    out: Tensor


@dataclass(kw_only=True)
class NaiveTicks:
    """K stages, and a method as a handful of rules of (stage, K).

    Args:
        stages: copied.
        make_optimizer: for each stage.
        offset: ticks from the entry of a micro-batch to its forward.
        lag: ticks from its forward to its backward.
        micro_batches: M.
        horizon: updates that the met parameters look ahead; None: the live ones.
        replays: the backward runs the forward again, with today's parameters.
        lives: the backward runs with the activations of the forward, and today's parameters.
        beta: what each boundary multiplies error gradients by.
        update: ``update(parameters, state, delay, index)`` in place of the optimizer's step; the
            parameters have gradients, the state is a dict of the stage's own.
    """

    stages: Sequence[nn.Module]
    make_optimizer: MakeOptimizer
    offset: Rule
    lag: Rule
    micro_batches: int = 1
    horizon: Rule | None = None
    replays: bool = False
    lives: bool = False
    beta: float = 1.0
    update: Callable[[list[nn.Parameter], dict[str, Any], int, int], None] | None = None

    def __post_init__(self) -> None:
        self.stages = copy.deepcopy(list(self.stages))
        self.optimizers = [self.make_optimizer(list(s.parameters())) for s in self.stages]
        self.previous: list[list[Tensor] | None] = [None for _ in self.stages]
        self.passages: dict[tuple[int, int], Passage] = {}
        self.deltas: dict[tuple[int, int], Tensor | None] = {}
        self.sums: list[list[Tensor | None]] = [[] for _ in self.stages]
        self.states: list[dict[str, Any]] = [{} for _ in self.stages]
        self.updates = [0 for _ in self.stages]
        self._parts: list[tuple[Tensor, Tensor, float]] = []

    def run(self, data: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor | None]:
        """Train on all batches, then drain; return each iteration's loss, None where there is none.

        With micro-batches that is the sum over its ticks.
        """
        parts = [
            # A clone, since a matrix product may round otherwise where memory is not aligned.
            (x if self.micro_batches == 1 else x.clone(), y, len(y) / len(targets))
            for inputs, targets in data
            for x, y in zip(
                inputs.tensor_split(self.micro_batches),
                targets.tensor_split(self.micro_batches),
                strict=True,
            )
        ]
        last, losses = len(self.stages) - 1, []
        depth = int(max(self.offset(k, last + 1) + self.lag(k, last + 1) for k in range(last + 1)))
        for t in range(len(parts) + depth):
            losses.append(self._tick(t, parts))
        ticks = losses[: len(parts)]
        return [
            self._total(ticks[i : i + self.micro_batches])
            for i in range(0, len(ticks), self.micro_batches)
        ]

    def step(self, x: Tensor, targets: Tensor) -> Tensor | None:
        """Run one iteration of one micro-batch; the stages are then those of after its updates."""
        self._parts.append((x, targets, 1.0))
        return self._tick(len(self._parts) - 1, self._parts)

    def _total(self, losses: list[Tensor | None]) -> Tensor | None:
        total = None
        for loss in losses:
            if loss is not None:
                total = loss if total is None else total + loss
        return total

    def _tick(self, t: int, parts: list[tuple[Tensor, Tensor, float]]) -> Tensor | None:
        num_stages, loss = len(self.stages), None
        for k in range(num_stages):
            n = int(t - self.offset(k, num_stages))
            if 0 <= n < len(parts):
                loss = self._forward(k, n, parts[n])
        for k in reversed(range(num_stages)):
            n = int(t - self.offset(k, num_stages) - self.lag(k, num_stages))
            if 0 <= n < len(parts):
                self._backward(k, n, parts[n])
        return loss

    def _forward(self, k: int, n: int, part: tuple[Tensor, Tensor, float]) -> Tensor | None:
        source = part[0] if k == 0 else self.passages[k - 1, n].out
        x = source.detach().clone().requires_grad_(k > 0)
        met = self._copy(k)
        if self.horizon is not None and self.previous[k] is not None:
            with torch.no_grad():
                for p, was in zip(met.parameters(), self.previous[k], strict=True):
                    p.copy_(p.add(p - was, alpha=self.horizon(k, len(self.stages))))
        out = self._run(k, met, x, part)
        with torch.no_grad():  # a forward may write parameters too
            state = met.state_dict() if self.horizon is None else dict(met.named_buffers())
            for name, moved in state.items():
                self.stages[k].state_dict(keep_vars=True)[name].copy_(moved)
        self.passages[k, n] = Passage(met, x, out)
        return out.detach() if k == len(self.stages) - 1 else None

    def _run(
        self, k: int, stage: nn.Module, x: Tensor, part: tuple[Tensor, Tensor, float]
    ) -> Tensor:
        out = stage(x.clone())
        if k == len(self.stages) - 1:
            out = cross_entropy(out, part[1])
            out = out if part[2] == 1 else out * part[2]
        return out

    def _backward(self, k: int, n: int, part: tuple[Tensor, Tensor, float]) -> None:
        passage = self.passages[k, n]
        if self.replays and self.lag(k, len(self.stages)) > 0:
            passage.stage = self._copy(k)
            passage.x = passage.x.detach().requires_grad_(k > 0)
            passage.out = self._run(k, passage.stage, passage.x, part)
        if self.lives:
            for old, new in zip(
                passage.stage.parameters(), self.stages[k].parameters(), strict=True
            ):
                old.data.copy_(new.data)
        passage.out.backward(self.deltas.pop((k + 1, n), None))
        if k > 0:
            self.deltas[k, n] = passage.x.grad * self.beta
        found = [p.grad for p in passage.stage.parameters()]
        sums = self.sums[k]
        self.sums[k] = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        if (n + 1) % self.micro_batches == 0:
            self.previous[k] = [p.detach().clone() for p in self.stages[k].parameters()]
            for p, grad in zip(self.stages[k].parameters(), self.sums[k], strict=True):
                p.grad = grad
            if self.update is None:
                self.optimizers[k].step()
            else:
                delay = -(-int(self.lag(k, len(self.stages))) // self.micro_batches)
                with torch.no_grad():
                    parameters = list(self.stages[k].parameters())
                    self.update(parameters, self.states[k], delay, self.updates[k])
            self.updates[k] += 1
            self.sums[k] = []

    def _copy(self, k: int) -> nn.Module:
        stage = copy.deepcopy(self.stages[k])
        stage.zero_grad(set_to_none=True)
        return stage
