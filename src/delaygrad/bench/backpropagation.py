"""Plain backpropagation in one process: what everybody has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from delaygrad.bench.contestant import Contestant, Setting


class Loop(Contestant):
    """The loop that a user would write, on the same batch in every iteration."""

    def __init__(
        self,
        compute_loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        batch: tuple[Tensor, Tensor],
    ) -> None:
        self._compute_loss, self._optimizer, self._batch = compute_loss, optimizer, batch

    def step(self) -> None:
        self._optimizer.zero_grad()
        loss = self._compute_loss(*self._batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.last_loss = loss.detach()


class Backpropagation(Loop):
    """This loop on the whole network, in one process.

    ``compiled``: forward, loss and backward by ``torch.compile``, for the number of threads that
    the first step finds.
    """

    def __init__(self, setting: Setting, *, compiled: bool = False) -> None:
        workload = setting.workload
        batch = workload.batch()
        network = WithLoss(workload.model(), workload.loss_fn)
        optimizer = workload.make_optimizer(list(network.parameters()))
        compute_loss = torch.compile(network, dynamic=False) if compiled else network
        super().__init__(compute_loss, optimizer, batch)


class WithLoss(nn.Module):
    """A network and its loss as one module, so that both are compiled."""

    def __init__(self, network: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self._loss_fn = network, loss_fn

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss_fn(self.network(inputs), targets)
