"""Find calls of ordinary training loops that are useless or harmful in a pipeline.

``pipe.step`` has updated when it returns. An ``optimizer.step()`` after it would apply each stage's
gradient a second time: an error. Clipping after it has no effect: a warning, once. Gradients are
compared after the 1st, 2nd, 4th, 8th ... step.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from delaygrad.errors import DelaygradWarning, StageError
from delaygrad.optimizers import parts_of


class HabitGuard:
    """Watch a stage's optimizer and gradients between two steps of its pipeline.

    Args:
        optimizer: the stage's; None if it has no parameters.
        stage_index: its own, for messages.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None, stage_index: int) -> None:
        self._stage_index = stage_index
        self._parameters: list[nn.Parameter] = []
        self._applied: tuple[nn.Parameter, int, int] | None = None
        self._told = False
        self._runs = 0
        self._optimizers = [] if optimizer is None else [optimizer, *parts_of(optimizer)]
        self.training = False
        """Whether the pipeline is running: the optimizer may step."""
        self._handles: list[RemovableHandle] = []
        if optimizer is None:
            return
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        me = weakref.ref(self)  # the optimizer may live longer, and train by hand then

        def before_step(*_: Any) -> None:
            guard = me()
            if guard is not None and not guard.training:
                raise StageError(
                    f"optimizer.step() was called outside the pipeline (stage: {stage_index}); "
                    "pipe.step has updated already, so leave it out; to train by hand, close the "
                    "pipeline first"
                )

        self._handles = [part.register_step_pre_hook(before_step) for part in parts_of(optimizer)]

    def begin(self) -> None:
        """Note that the pipeline starts to run."""
        self.training = True
        for optimizer in self._optimizers:
            # Schedulers of torch follow iterations, and warn where no optimizer step came first.
            # In the fill none does, and that is right.
            optimizer._opt_called = True  # type: ignore[attr-defined]
        if self._applied is not None:
            self._look(*self._applied)
            self._applied = None

    def _look(self, parameter: nn.Parameter, identity: int, writes: int) -> None:
        gradient = parameter.grad
        if gradient is None or (id(gradient) == identity and gradient._version == writes):
            return
        if not self._told and bool((gradient != 0).any()):  # zero_grad is needless, but harmless
            self._told = True
            warnings.warn(
                f"gradients were changed after pipe.step had applied them (stage: "
                f"{self._stage_index}), which does nothing; to clip, give the pipeline "
                "clip_norm=1.0 (docs/your-own-loop.md)",
                DelaygradWarning,
                stacklevel=5,  # who calls pipe.step
            )

    def end(self) -> None:
        """Note that the pipeline has stopped running; look at the next step if it is time to."""
        self.training = False
        self._runs += 1
        if self._runs & (self._runs - 1):
            return
        for parameter in self._parameters:
            gradient: Tensor | None = parameter.grad
            if gradient is not None:
                if gradient.layout == torch.strided:
                    self._applied = parameter, id(gradient), gradient._version
                return

    def release(self) -> None:
        """Remove the hooks of the optimizer."""
        for handle in self._handles:
            handle.remove()
