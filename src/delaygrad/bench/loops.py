"""Plain loops and this library as contestants; the pipelines of torch have a file of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from delaygrad.bench.contestant import Contestant, Setting
from delaygrad.methods import DDG
from delaygrad.runtime import DistributedPipeline

# Running statistics stay where they are; torch has renamed the option.
_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_NEW, _OLD = "forward_sync_buffers", "broadcast_buffers"
_NO_BUFFERS: dict[str, Any] = {_NEW if _NEW in _OPTIONS else _OLD: False}


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


class DataParallel(Loop):
    """``DistributedDataParallel`` with the options that make it fast.

    Gradients are views of the buckets, the graph is declared static, and running statistics are
    not sent around. The global batch is that of the other contestants. ``compressed``: gradients
    travel in float16 (torch's hook for bfloat16 refuses gloo).
    """

    def __init__(self, setting: Setting, *, compressed: bool = False) -> None:
        workload, rank, num_ranks = setting.workload, setting.rank, setting.num_stages
        inputs, targets = workload.batch()
        if len(inputs) % num_ranks:
            raise ValueError(f"{num_ranks} ranks do not divide a batch of {len(inputs)}")
        share = inputs.chunk(num_ranks)[rank], targets.chunk(num_ranks)[rank]
        network = DistributedDataParallel(
            workload.model(),
            process_group=setting.group,
            gradient_as_bucket_view=True,
            static_graph=True,
            **_NO_BUFFERS,
        )
        if compressed:
            network.register_comm_hook(setting.group, default_hooks.fp16_compress_hook)
        optimizer = workload.make_optimizer(list(network.parameters()))
        super().__init__(WithLoss(network, workload.loss_fn), optimizer, share)


class Delayed(Contestant):
    """``DistributedPipeline`` with DDG and its options."""

    def __init__(self, setting: Setting, **options: Any) -> None:
        workload, method = setting.workload, DDG(**options)
        self._inputs, self._targets = workload.batch()
        self._pipeline = DistributedPipeline(
            workload.stages(setting.num_stages, setting.cuts)[setting.rank],
            workload.loss_fn,
            workload.make_optimizer,
            method=method,
            group=setting.group,
            timeout_s=setting.timeout_s,
        )
        self.fill = method.schedule.delay(0, setting.num_stages)

    def step(self) -> None:
        self.last_loss = self._pipeline.step(self._inputs, self._targets)

    def finish(self) -> None:
        self._pipeline.flush()

    def stage_seconds(self) -> dict[str, float]:
        return self._pipeline.stage_seconds()[0]
