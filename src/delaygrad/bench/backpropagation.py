"""Plain backpropagation in one process: what everybody has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from delaygrad.bench.contestant import Contestant, Setting
from delaygrad.bench.workload import Workload


class Backpropagation(Contestant):
    """The loop that a user would write.

    Args:
        setting: the contest.
        compiled: forward, loss and backward by ``torch.compile``; for the number of threads that
            the first step finds.
    """

    def __init__(self, setting: Setting, *, compiled: bool = False) -> None:
        workload = setting.workload
        self._inputs, self._targets = workload.batch()
        network = _WithLoss(workload)
        self._optimizer = workload.make_optimizer(list(network.parameters()))
        self._compute_loss: Callable[[Tensor, Tensor], Tensor] = (
            torch.compile(network, dynamic=False) if compiled else network
        )
        self._loss: Tensor | None = None

    def step(self) -> None:
        self._optimizer.zero_grad()
        loss = self._compute_loss(self._inputs, self._targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._loss = loss.detach()

    def loss(self) -> float | None:
        return None if self._loss is None else float(self._loss)


class _WithLoss(nn.Module):
    """The network and its loss as one module, so that both are compiled."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.network = workload.model()
        self._loss_fn = workload.loss_fn

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss_fn(self.network(inputs), targets)
