"""Data parallelism: the whole network on every rank, each with its share of the batch."""

from __future__ import annotations

import inspect
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from delaygrad.bench.backpropagation import Loop, WithLoss
from delaygrad.bench.contestant import Setting

# Running statistics stay where they are; torch has renamed the option.
_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_NEW, _OLD = "forward_sync_buffers", "broadcast_buffers"
_NO_BUFFERS: dict[str, Any] = {_NEW if _NEW in _OPTIONS else _OLD: False}


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
