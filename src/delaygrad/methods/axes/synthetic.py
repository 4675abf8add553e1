"""Synthetic error gradients: a small network predicts them, and learns from the true gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from delaygrad.methods.axes.error_gradient import ErrorGradient, LocalGradients
from delaygrad.methods.axes.synthesizer import Synthesizer
from delaygrad.state_check import check_optimizer


@dataclass(frozen=True, repr=False)
class Synthetic(ErrorGradient):
    """Predict the error gradient of a stage's output from the output, and update at once.

    The target of the prediction is the error gradient that the stage above computes later.

    Args:
        num_classes: condition the predictions on class labels, of this many classes; then every
            stage needs the targets (class indices). None: no labels.
        synthesizer_width: hidden channels or units; None is 128 for images, 1024 else.
        synthesizer_layers: hidden layers, at least 0.
        synthesizer_kernel: side of the convolutions, odd.
        synthesizer_lr: learning rate of the synthesizers' Adam.

    Raises:
        ValueError: a number is out of range.

    References:
        Jaderberg et al., ICML 2017, arXiv:1608.05343. Differs: see ``delaygrad.methods.dni``.
    """

    num_classes: int | None = None
    synthesizer_width: int | None = None
    synthesizer_layers: int = 2
    synthesizer_kernel: int = 5
    synthesizer_lr: float = 1e-4

    def __post_init__(self) -> None:
        least = {
            "num_classes": 2,
            "synthesizer_width": 1,
            "synthesizer_layers": 0,
            "synthesizer_kernel": 1,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} must be at least {smallest} ({name}: {value})")
        if self.synthesizer_kernel % 2 == 0:
            raise ValueError(
                f"synthesizer_kernel must be odd (synthesizer_kernel: {self.synthesizer_kernel})"
            )
        if not self.synthesizer_lr > 0:
            raise ValueError(
                f"synthesizer_lr must be positive (synthesizer_lr: {self.synthesizer_lr})"
            )

    @property
    def is_local(self) -> bool:
        return True

    @property
    def sees_targets(self) -> bool:
        return self.num_classes is not None

    def make_local(self, device: torch.device) -> LocalGradients:
        return Synthesizers(self, device)

    @property
    def lr(self) -> float:
        """Learning rate of the synthesizers."""
        return self.synthesizer_lr

    def make_network(self, shape: torch.Size) -> nn.Module:
        """Build the synthesizer of an output tensor.

        Args:
            shape: of the output, the batch first.

        Raises:
            StageError: there is no synthesizer for this shape.
        """
        return Synthesizer(
            shape,
            num_classes=self.num_classes,
            width=self.synthesizer_width,
            num_hidden=self.synthesizer_layers,
            kernel_size=self.synthesizer_kernel,
        )


class LearnsLocally(Protocol):
    """An axis value with networks that learn beside the stage."""

    @property
    def lr(self) -> float:
        """Learning rate of the networks' Adam."""

    def make_network(self, shape: torch.Size) -> nn.Module:
        """Build the network for outputs of this shape, the batch first."""


class Synthesizers:
    """The synthesizers of one stage, one for each output that requires a gradient.

    Args:
        axis: how they are made.
        device: where they are.
    """

    def __init__(self, axis: LearnsLocally, device: torch.device) -> None:
        self._axis, self._device = axis, device
        self._networks = nn.ModuleDict()  # by the position of the output
        self._made_for: dict[str, dict[str, Any]] = {}  # shape and dtype, by position
        self._optimizer: torch.optim.Optimizer | None = None

    def gradients(self, outputs: list[Tensor | None], targets: Any) -> list[Tensor | None]:
        """Return the gradients of a mean loss: each sample's own, divided by their number."""
        return [
            None if output is None else self._predict(str(position), output, targets)
            for position, output in enumerate(outputs)
        ]

    def learn(
        self,
        outputs: list[Tensor | None],
        targets: Any,
        grad_outputs: list[Tensor | None] | None,
    ) -> None:
        """Compute the gradients of the squared errors."""
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)
        given = grad_outputs or [None] * len(outputs)
        for position, (output, grad) in enumerate(zip(outputs, given, strict=True)):
            if output is None or grad is None:
                continue
            predicted = self._networks[str(position)](output, targets)
            error = predicted - grad.to(output.device, output.dtype) * len(output)
            (error.square().sum() / len(output)).backward()

    def update(self) -> None:
        """Update the synthesizers by their optimizer."""
        if self._optimizer is not None:
            self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot in plain containers."""
        optimizer = None if self._optimizer is None else self._optimizer.state_dict()
        return {
            "made_for": copy.deepcopy(self._made_for),
            "model": copy.deepcopy(dict(self._networks.state_dict())),
            "optimizer": copy.deepcopy(optimizer),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, bit for bit."""
        self._networks = nn.ModuleDict()
        self._made_for, self._optimizer = {}, None
        for position, made_for in state["made_for"].items():
            dtype = getattr(torch, made_for["dtype"])
            self._make(position, torch.Size(made_for["shape"]), dtype)
        self._networks.load_state_dict(state["model"])
        if self._optimizer is not None:
            check_optimizer(state["optimizer"], self._optimizer, "synthesizers")
            self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def _predict(self, position: str, output: Tensor, targets: Any) -> Tensor:
        network = self._network(position, output)
        with torch.no_grad():
            predicted: Tensor = network(output, targets) / len(output)
        return predicted

    def _network(self, position: str, output: Tensor) -> nn.Module:
        if position not in self._networks:
            self._make(position, output.shape, output.dtype)
        return self._networks[position]

    def _make(self, position: str, shape: torch.Size, dtype: torch.dtype) -> None:
        """Make the synthesizer of an output that requires a gradient for the first time."""
        network = self._axis.make_network(shape).to(self._device, dtype)
        self._networks[position] = network
        name = str(dtype).removeprefix("torch.")
        self._made_for[position] = {"shape": list(shape), "dtype": name}
        parameters = list(network.parameters())
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(parameters, lr=self._axis.lr)
        else:
            self._optimizer.add_param_group({"params": parameters})
