"""Local heads: a small classifier on each stage's output gives the stage its error gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from delaygrad.errors import StageError
from delaygrad.methods.axes.error_gradient import ErrorGradient, LocalGradients
from delaygrad.methods.axes.synthetic import Synthesizers


@dataclass(frozen=True, repr=False)
class LocalHead(ErrorGradient):
    """The gradient of a classifier's loss on the stage's own output; the stage updates at once.

    The classifier averages the output over positions and applies a linear layer, zero at first. It
    learns from the same loss, with Adam. What the stage above sends is not used.

    Args:
        classes: of the targets (class indices); every stage needs the targets.
        head_lr: learning rate of the classifiers' Adam.

    Raises:
        ValueError: a number is out of range.

    References:
        Belilovsky et al., ICML 2020, arXiv:1901.08164. Differs: see ``delaygrad.methods.dgl``.
    """

    classes: int
    head_lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ValueError(f"classes must be at least 2 (classes: {self.classes})")
        if not self.head_lr > 0:
            raise ValueError(f"head_lr must be positive (head_lr: {self.head_lr})")

    @property
    def is_local(self) -> bool:
        return True

    @property
    def sees_targets(self) -> bool:
        return True

    @property
    def lr(self) -> float:
        """Learning rate of the classifiers."""
        return self.head_lr

    def make_local(self, device: torch.device) -> LocalGradients:
        return LocalHeads(self, device)

    def make_network(self, shape: torch.Size) -> nn.Module:
        """Build the classifier of an output tensor of this shape, the batch first."""
        if len(shape) not in (2, 3, 4):
            raise StageError(
                "local heads are for outputs of shape (B, C), (B, T, C) or (B, C, H, W) "
                f"(shape: {tuple(shape)}); cut the network elsewhere"
            )
        return _Head(shape[1] if len(shape) == 4 else shape[-1], self.classes)


class LocalHeads(Synthesizers):
    """The classifiers of one stage; they learn when they are asked, not from the stage above."""

    def gradients(self, outputs: list[Tensor | None], targets: Any) -> list[Tensor | None]:
        """Return the gradients of the classifiers' losses; the classifiers take their step."""
        found = [
            None if output is None else self._gradient(str(position), output, targets)
            for position, output in enumerate(outputs)
        ]
        super().update()
        return found

    def learn(
        self,
        outputs: list[Tensor | None],
        targets: Any,
        grad_outputs: list[Tensor | None] | None,
    ) -> None:
        """Do nothing: the error gradients of the stage above are not used."""

    def update(self) -> None:
        """Do nothing: the classifiers have taken their step."""

    def _gradient(self, position: str, output: Tensor, targets: Any) -> Tensor | None:
        head = self._network(position, output)
        head.zero_grad(set_to_none=True)
        leaf = output.detach().requires_grad_()
        torch.autograd.backward(cross_entropy(head(leaf), targets.to(self._device)))
        return leaf.grad


class _Head(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() == 4:
            features = features.mean((2, 3))
        elif features.dim() == 3:
            features = features.mean(1)
        outputs: Tensor = self.linear(features)
        return outputs
