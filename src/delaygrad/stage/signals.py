"""What the messages of a stage carry beside tensors: norms of gradients, and the scale of the loss.

    with an activation        squared norms of the stages below, added up; the batch's scale
    with an error gradient    squared norms of the stages above; the batch's scale; whether a stage
                              above has skipped the batch

Each stage adds its own norm. Everything stays on the stage's device: no look at a value waits for
a GPU. The scale is decided where batches enter, at stage 0, where every skip arrives:

    a batch was skipped              scale = min(scale, its scale times backoff)
    growth_interval were not         scale = scale times growth
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from delaygrad.errors import DelaygradWarning, StageError
from delaygrad.methods import Method
from delaygrad.methods.axes import LossScale
from delaygrad.optimizers import parts_of

_MANY = 100  # batches skipped in a row
_DTYPE = torch.float64  # the square root of a squared float32 is the number itself


class Signals:
    """The scalars of one stage; used only if the method clips or scales.

    Args:
        method: the rule to train by.
        device: where the stage computes.
        stage_index: its own.
        num_stages: K.

    Raises:
        StageError: stages that update at different times are to wait for each other.
    """

    def __init__(
        self, method: Method, device: torch.device, stage_index: int, num_stages: int
    ) -> None:
        self._clip, self._loss_scale = method.clips, method.loss_scale
        self._device, self._is_first = device, stage_index == 0
        self._reads = device.type == "cpu"  # whether reading a value does not wait
        self._micro_batches = method.schedule.micro_batches
        self.waits = self._clip is not None and self._clip.wait
        uneven = any(method.schedule.splits_batches(k, num_stages) for k in range(num_stages))
        if self.waits and (uneven or method.error_gradient.is_local):
            raise StageError(
                "the stages update at different times, so that none can wait for the norms of all "
                f"(method: {method}); leave out wait=True, or take one micro-batch"
            )
        self.own = self._number(0.0)
        """Squared norm of the newest gradient of this stage."""
        self.total = self._number(0.0)
        """Squared norm over all stages, where they wait for each other."""
        self._below, self._above = self._number(0.0), self._number(0.0)
        self._scale = self._number(1.0 if self._loss_scale is None else self._loss_scale.initial)
        self._finite = self._number(0.0)  # batches since the scale was changed, on stage 0
        self.passing = self._scale
        """Scale of the batch that goes forward."""
        self.scale = self._scale
        """Scale of the batch that goes backward."""
        self._skip = self._number(0.0)
        self._skipped = self._number(0.0)
        self._in_a_row = self._number(0.0)  # batches skipped, on stage 0
        self._told = False
        self._kind = torch.float32  # of the gradients' norm

    @property
    def scales(self) -> bool:
        """Whether losses are scaled."""
        return self._loss_scale is not None

    @property
    def loss_scale(self) -> float:
        """The scale that the next batch gets, on stage 0; waits for the device."""
        return float(self._scale)

    @property
    def skipped(self) -> int:
        """Batches skipped so far; waits for the device."""
        return int(self._skipped)

    def look(self) -> None:
        """Warn, once, if batch after batch is skipped; on stage 0. Waits for the device."""
        if self._told or self._loss_scale is None:
            return
        in_a_row = int(self._in_a_row)
        if in_a_row >= _MANY or self.loss_scale < min(1.0, self._loss_scale.initial):
            self._told = True
            warnings.warn(
                f"loss scaling finds no scale (now: {self.loss_scale:g}, batches skipped in a row: "
                f"{in_a_row}), and skipped batches train nothing; look for a loss or a gradient "
                "that is NaN or infinite in float32 too",
                DelaygradWarning,
                stacklevel=3,  # who calls pipe.step
            )

    def enter(self, batch_index: int, scalars: Tensor | None) -> None:
        """Take what came with an activation.

        Args:
            batch_index: a (micro-)batch; the parts of a batch have one scale.
            scalars: None on stage 0.
        """
        if scalars is not None:
            self._below, self.passing, _ = scalars.to(self._device).unbind()
        elif batch_index % self._micro_batches == 0:
            self.passing = self._scale

    def upwards(self) -> Tensor:
        """Return what the activation that was just made carries."""
        return torch.stack([self._below + self.own, self.passing, self._skip])

    def returned(self, scalars: Tensor) -> None:
        """Take what came with an error gradient."""
        self._above, self.scale, self._skip = scalars.to(self._device).unbind()

    def first_gradient(self, loss: Tensor, scale: Tensor) -> Tensor:
        """Begin the way back of a batch with this scale on the last stage; return its gradient."""
        self.scale, self._skip = scale, self._number(0.0)
        return torch.where(loss.detach().isfinite(), scale, math.nan).to(loss.dtype)

    def downwards(self) -> Tensor:
        """Return what the error gradient that was just made carries."""
        return torch.stack([self._above + self.own, self.scale, self._skip])

    def settle(self, parameters: Iterable[nn.Parameter]) -> None:
        """Look at the gradient of a whole batch, and remove its scale."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._loss_scale is not None:
            self._unscale(gradients, self._loss_scale)
        if self._clip is not None:
            norm = nn.utils.get_total_norm(gradients)
            own = norm.to(self._device, _DTYPE).square()
            self.own = torch.where(self._skip > 0, self.own, own) if self.scales else own
            self._kind = norm.dtype

    def skips(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether to leave out the update; on an accelerator the optimizer itself leaves it out.

        Raises:
            StageError: an optimizer on an accelerator cannot do that.
        """
        if not self.scales:
            return False
        if self._reads:
            return bool(self._skip)
        for part in parts_of(optimizer):
            if not getattr(part, "_step_supports_amp_scaling", False):
                raise StageError(
                    "with a loss scale, an optimizer on an accelerator must skip updates by itself "
                    f"(optimizer: {type(part).__name__}); make it with fused=True"
                )
            vars(part).update(grad_scale=None, found_inf=self._skip.float())
        return False

    def norm(self) -> Tensor | None:
        """Return the norm over all stages, as far as it is known here; None without clipping."""
        if self._clip is None:
            return None
        squared = self.total if self.waits else self._below + self.own + self._above
        return squared.sqrt().to(self._kind)

    def applied(self) -> float:
        """Return the squared norm of what will be applied; waits for the device."""
        return 0.0 if self._skip else float(self.own)

    def state_dict(self) -> list[Tensor]:
        """Return a snapshot."""
        return [getattr(self, name).clone() for name in _STATE]

    def load_state_dict(self, state: Sequence[Tensor]) -> None:
        """Continue from what ``state_dict`` returned."""
        for name, value in zip(_STATE, state, strict=True):
            setattr(self, name, value.to(self._device, copy=True))

    def continued(self, first: Sequence[Tensor]) -> list[Tensor]:
        """Return this state, with the loss scale of another pipeline's first stage."""
        found = {name: getattr(self, name).clone() for name in _STATE}
        theirs = dict(zip(_STATE, first, strict=True))
        found.update({name: theirs[name] for name in ("_scale", "_finite", "passing", "scale")})
        return list(found.values())

    def _unscale(self, gradients: Sequence[Tensor], rule: LossScale) -> None:
        largest = nn.utils.get_total_norm(gradients, math.inf)
        self._skip = torch.where(largest.isfinite().to(self._device), self._skip, 1.0)
        torch._foreach_mul_(list(gradients), 1 / self.scale)
        self._skipped = self._skipped + self._skip
        if self._is_first:
            lowered = torch.minimum(self._scale, self.scale * rule.backoff)
            finite = (self._finite + 1) * (1 - self._skip)
            due = finite >= rule.growth_interval
            raised = torch.where(due, self._scale * rule.growth, self._scale)
            self._scale = torch.where(self._skip > 0, lowered, raised)
            self._finite = torch.where(due, 0.0, finite)
            self._in_a_row = (self._in_a_row + 1) * self._skip

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=_DTYPE, device=self._device)


def signals_of(
    method: Method, device: torch.device, stage_index: int, num_stages: int
) -> Signals | None:
    """Return the signals of a stage; None if the method neither clips nor scales."""
    if method.clips is None and method.loss_scale is None:
        return None
    return Signals(method, device, stage_index, num_stages)


_STATE = (
    "own", "_below", "_above", "_scale", "_finite", "passing", "scale", "_skip", "_skipped",
)  # fmt: skip
