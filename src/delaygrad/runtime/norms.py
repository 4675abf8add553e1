"""The norm of the gradients of all stages, where the stages wait for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from delaygrad.runtime.worker import Worker


def agree_on_norm(
    workers: Mapping[int, Worker],
    updating: Collection[int],
    share: Callable[[Any], list[Any]],
    num_replicas: int,
) -> None:
    """Tell the stages of this process the norm of what all stages apply; all processes call it.

    Args:
        workers: of this process, by stage index.
        updating: the stages that are about to update.
        share: returns the values of all processes, one replica after the other.
        num_replicas: of the pipeline.
    """
    found = {k: s for k, worker in workers.items() if (s := worker.stage.signals)}
    own = [signals.applied() if k in updating else 0.0 for k, signals in found.items()]
    told = share(own)
    of_one_replica = told[: len(told) // num_replicas]  # all apply the same
    total = sum(value for values in of_one_replica for value in values)
    for signals in found.values():
        signals.total.fill_(total)
