"""The gradient of one batch at the live parameters of all stages, beside training.

batch_index   0 1 2 3       each micro-batch forward through all stages,
forward       K stages      then backward down to the stage that is asked for
backward      K .. stage
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from delaygrad.runtime.worker import Worker


class BesideTraining(Protocol):
    """Looks at a pipeline from outside; every rank has one, or none has."""

    def before(self) -> None:
        """Act before an iteration whose batch is there."""

    def after(self, share: Callable[[Any], list[Any]]) -> None:
        """Act after an iteration; ``share`` returns the values of all processes, all call it."""

    def forget(self) -> None:
        """Forget the batches that were in flight."""


def run_live_pass(workers: Mapping[int, Worker], batches: range, stage_index: int) -> None:
    """Take the parts of a batch forward and backward; see ``Pipeline.live_gradient``.

    Args:
        workers: of this process, by stage index.
        batches: watched micro-batches.
        stage_index: the stage whose gradient is asked for.
    """
    for batch_index in batches:
        for worker in workers.values():
            worker.live_forward(batch_index)
    from_above = sorted((k for k in workers if k >= stage_index), reverse=True)
    for batch_index in batches:
        for k in from_above:
            workers[k].live_backward(batch_index, is_lowest=k == stage_index)
    for worker in workers.values():
        worker.stage.watched().end()
