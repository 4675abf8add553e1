"""What a user sees of the stages that a process holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.records import StageTrace
from delaygrad.runtime.worker import Worker


class HeldStages:
    """The stages of one process: all of a network, or one of them.

    Args:
        workers: of the stages.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = {worker.stage.stage_index: worker for worker in workers}

    @property
    def modules(self) -> list[nn.Module]:
        """The live modules of the stages that this process holds, from the input."""
        return [worker.stage.module for worker in self._workers.values()]

    stages = modules

    @property
    def holds_first(self) -> bool:
        """Whether this process holds stage 0."""
        return 0 in self._workers

    @property
    def optimizers(self) -> list[torch.optim.Optimizer | None]:
        """The optimizers of these stages; None for a stage without parameters."""
        return [worker.stage.optimizer for worker in self._workers.values()]

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer of the only stage in this process; see ``optimizers`` for several."""
        if len(self._workers) > 1:
            raise AttributeError(
                f"each stage has an optimizer of its own (stages in this process: "
                f"{len(self._workers)}); use pipe.optimizers, a list"
            )
        return self.optimizers[0]

    @property
    def loss_scale(self) -> float | None:
        """The scale of the next batch's loss; None without one, or where stage 0 is not here.

        Reading it waits for the device.
        """
        signals = self._workers[0].stage.signals if 0 in self._workers else None
        return signals.loss_scale if signals is not None and signals.scales else None

    @property
    def skipped(self) -> list[int]:
        """How many batches each stage of this process has skipped; reading waits for the device."""
        stages = [worker.stage for worker in self._workers.values()]
        return [0 if stage.signals is None else stage.signals.skipped for stage in stages]

    @property
    def added_losses(self) -> list[Tensor | None]:
        """What ``add_loss`` was given in the newest batch of each stage of this process.

        0-d, detached; None where it was not called. ``step`` returns the loss without it.
        """
        return [worker.stage.added.newest for worker in self._workers.values()]

    @property
    def extras(self) -> list[Any]:
        """What ``loss_fn`` returned beside the loss of the newest batch, for each micro-batch.

        Detached. Empty where ``loss_fn`` returns the loss only, or does not run in this process.
        """
        return [
            extras
            for worker in self._workers.values()
            if worker.stage.loss is not None
            for extras in worker.stage.loss.extras
        ]

    @property
    def wants_targets(self) -> bool:
        """Whether ``step`` reads targets here: last stage, or synthesizers that see labels."""
        return any(worker.stage.wants_targets for worker in self._workers.values())

    def stage_seconds(self) -> list[dict[str, float]]:
        """Seconds that each stage has spent on each of ``delaygrad.records.ACTIVITIES``."""
        return [dict(worker.clock.seconds) for worker in self._workers.values()]

    def start_trace(self, num_iterations: int) -> None:
        """Record every activity of the next iterations, in memory; forget the last trace.

        Raises:
            ValueError: ``num_iterations`` is not positive.
        """
        for worker in self._workers.values():
            worker.clock.start_trace(num_iterations)

    def stage_traces(self) -> list[StageTrace]:
        """Return what the last trace has recorded so far, for each stage of this process.

        Times are nanoseconds on this process's own clock.
        """
        return [worker.trace() for worker in self._workers.values()]
