"""Clip gradients by the norm of the whole network's gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from delaygrad.methods.axes.update import Step, Update


@dataclass(frozen=True, repr=False)
class ClipNorm(Update):
    """Scale a stage's gradient down where the norm over all stages exceeds ``max_norm``.

        g[k] = g[k] min(1, max_norm / (norm + 1e-6)),  norm² = below[k] + |g[k]|² + above[k]

    Without waiting, the stage knows its own gradient, and of the others what the messages have
    carried: ``above`` is of the same batch, ``below`` is of the batches that the stages below have
    applied last. With one stage it is ``torch.nn.utils.clip_grad_norm_``. Take it as the first of a
    chain: the norm is that of the gradients before any other transformation.

    Args:
        max_norm: above 0.
        wait: let the stages wait for each other before they update, and use the norm of what all of
            them apply in this iteration.

    Raises:
        ValueError: ``max_norm`` is not above 0.
    """

    max_norm: float
    wait: bool = False

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be above 0 (max_norm: {self.max_norm})")

    def before(self, step: Step) -> None:
        assert step.norm is not None
        nn.utils.clip_grads_with_norm_(step.live.values(), self.max_norm, step.norm)
