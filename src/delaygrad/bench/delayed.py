"""Delayed gradients: this library, one rank per stage."""

from __future__ import annotations

from typing import Any

from delaygrad.bench.contestant import Contestant, Setting
from delaygrad.methods import DDG
from delaygrad.runtime import DistributedPipeline


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
