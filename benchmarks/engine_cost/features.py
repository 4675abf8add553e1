"""Where the engine looks whether a feature is used: what a copy without the feature has there."""

# ruff: noqa: E501

from __future__ import annotations

STAGE, WORKER, PIPELINE = "stage/stage.py", "runtime/worker.py", "runtime/pipeline.py"
FORWARD = "stage/forward_pass.py"

Lines = list[tuple[str, str, str]]
"""File, lines that are there, and what takes their place."""

SIGNALS: Lines = [
    (STAGE, "scale=None if self.signals is None else self.signals.passing,", "scale=None,"),
    (STAGE, "        if self._average is None:\n            self._settle(batch_index)\n", ""),
    (STAGE, "signals = self.signals\n", "signals = None\n"),
    (STAGE, "elif not (signals and signals.skips(self.optimizer)):", "else:"),
    (STAGE, "norm = None if signals is None else signals.norm()", "norm = None"),
    (STAGE, "        if self.signals is not None:\n            if self.is_last:", "        if 0:\n            if 0:"),
    (WORKER, "if stage.signals is not None:\n            stage.signals.enter(batch_index, scalars)", "pass"),
    (WORKER, "scalars = None if stage.signals is None else stage.signals.upwards()", "scalars = None"),
    (WORKER, "        signals = self.stage.signals\n", ""),
    (WORKER, "if signals is not None and received.scalars is not None:\n                signals.returned(received.scalars)", "pass"),
    (WORKER, "        if signals is not None and self.stage.average(batch_index):\n            self.clock.lap(\"average\")\n", ""),
    (WORKER, "scalars, num_bytes = None if signals is None else signals.downwards(), 0", "scalars, num_bytes = None, 0"),
    (PIPELINE, "if self.iteration % _LOOK_EVERY == 0 and self.holds_first:", "if False:"),
    (PIPELINE, "self._with_norms(actions) if self._waits else actions", "actions"),
]  # fmt: skip
ADDED_LOSSES: Lines = [
    (FORWARD, "with Collecting() as added:", "for added in ((),):"),
    (FORWARD, "        if added:\n            batch.added = total(added, batch.portion)\n", ""),
    (FORWARD, "[*tensors, *added]", "tensors"),
    (STAGE, "        self.added.note(batch_index, batch.added)\n", ""),
    (STAGE, "return with_added(batch.roots, grad_outputs, batch.added, scale)",
     "return batch.roots, grad_outputs"),
]  # fmt: skip
REPLICAS: Lines = [
    (STAGE, "        averaging: AbstractContextManager[None] = _NOTHING\n        if self._average is not "
     "None and self._is_whole(batch_index):\n            averaging = self._average.during("
     "batch.weights)\n        with averaging:\n", "        if True:\n"),
    (WORKER, "                if self.stage.average(batch_index):\n                    self.clock.lap("
     "\"average\")\n", ""),
]  # fmt: skip
MONITOR: Lines = [
    (PIPELINE, "        if self.monitor is not None:\n            self.monitor.before()\n", ""),
    (PIPELINE, "        if self.monitor is not None:\n            self.monitor.after(self._share)\n", ""),
    (STAGE, "if self.rule.waits or self.live_pass is not None:", "if self.rule.waits:"),
    (STAGE, "        if self.live_pass is not None:\n            self.live_pass.enter(batch_index, batch)\n", ""),
]  # fmt: skip
SCHEDULE: Lines = [
    (STAGE, "        if self._hands_over:\n            self._unused.look()\n        elif", "        if"),
    (STAGE, "        if self._hands_over:\n            if self.rule.keeps_version:\n                "
     "self._parameters.before_update()\n            forget_casts(self._device_type)\n", ""),
]  # fmt: skip
SHARED_LOSS: Lines = [
    (PIPELINE, "return self._on_every_rank(loss) if share_loss else loss\n", "return loss\n"),
]

FEATURES = {
    "control": [],
    "clipping and loss scaling": SIGNALS,
    "added losses": ADDED_LOSSES,
    "replicas": REPLICAS,
    "monitor": MONITOR,
    "ScheduleDDG": SCHEDULE,
    "share_loss": SHARED_LOSS,
}
FEATURES["all"] = [line for lines in FEATURES.values() for line in lines]
