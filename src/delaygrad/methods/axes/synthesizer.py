"""The network that predicts the error gradient of a stage's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from delaygrad.errors import StageError

_CHANNELS, _UNITS = 128, 1024


class Synthesizer(nn.Module):
    """Predict, for each sample, the gradient of its loss with respect to a stage's output.

    Hidden layers with BatchNorm and ReLU, then a linear layer that is zero at first: so the first
    predictions are zero. BatchNorm uses the statistics of the batch, or running statistics if the
    batch has a single value per channel. For (B, C, H, W) the layers are convolutions that keep the
    resolution; for (B, C) and (B, T, C) they are linear, the same at each position.

    Args:
        shape: of the outputs, the batch first; its first number does not matter.
        num_classes: condition the synthesizer on one-hot class labels; None: no labels.
        width: hidden channels (default 128) or units (default 1024).
        num_hidden: hidden layers, at least 0.
        kernel_size: side of the convolutions, odd.

    Raises:
        StageError: outputs of this shape have no synthesizer.

    References:
        Jaderberg et al., ICML 2017, arXiv:1608.05343, supplement (recalled).
    """

    def __init__(
        self,
        shape: torch.Size,
        *,
        num_classes: int | None,
        width: int | None,
        num_hidden: int,
        kernel_size: int,
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3, 4):
            raise StageError(
                "synthetic gradients are for outputs of shape (B, C), (B, T, C) or (B, C, H, W) "
                f"(shape: {tuple(shape)}); cut the network elsewhere"
            )
        self._num_classes = num_classes
        self._is_image = len(shape) == 4
        channels = shape[1] if self._is_image else shape[-1]
        width = width or (_CHANNELS if self._is_image else _UNITS)
        widths = [channels + (num_classes or 0), *[width] * num_hidden]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [self._linear(before, after, kernel_size), self._norm(after), nn.ReLU()]
        last = self._linear(widths[-1], channels, kernel_size)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, output: Tensor, targets: Any) -> Tensor:
        """Return a tensor of the output's shape.

        Args:
            output: (B, C), (B, T, C) or (B, C, H, W).
            targets: class indices (B,), for (B, T, C) also (B, T); None if it sees no labels.

        Raises:
            StageError: the targets are not these.
        """
        self.train(output.numel() > output.shape[self._channel_dim])  # else BatchNorm refuses
        if self._num_classes is not None:
            output = torch.cat([output, self._labels(output, targets)], dim=self._channel_dim)
        if self._is_image or output.dim() == 2:
            predicted: Tensor = self.layers(output)
        else:
            predicted = self.layers(output.flatten(0, 1)).unflatten(0, output.shape[:2])
        return predicted

    @property
    def _channel_dim(self) -> int:
        return 1 if self._is_image else -1

    def _labels(self, output: Tensor, targets: Any) -> Tensor:
        """One-hot labels, of the output's shape but for the channels."""
        assert self._num_classes is not None
        allowed = {output.shape[:1], *([] if self._is_image else [output.shape[:-1]])}
        is_tensor = isinstance(targets, Tensor)
        if not is_tensor or targets.shape not in allowed or targets.is_floating_point():
            found = f"{targets.dtype} {tuple(targets.shape)}" if is_tensor else str(type(targets))
            raise StageError(
                "a synthesizer that sees labels needs class indices on every stage (shape: "
                f"{' or '.join(sorted(str(tuple(shape)) for shape in allowed))}, given: {found})"
            )
        labels = one_hot(targets.to(output.device), self._num_classes).to(output.dtype)
        while labels.dim() < output.dim():  # the same label at all positions
            labels = labels.unsqueeze(2) if self._is_image else labels.unsqueeze(1)
        shape = list(output.shape)
        shape[self._channel_dim] = self._num_classes
        return labels.expand(shape)

    def _linear(self, before: int, after: int, kernel_size: int) -> nn.Conv2d | nn.Linear:
        if self._is_image:
            return nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2)
        return nn.Linear(before, after)

    def _norm(self, width: int) -> nn.Module:
        kind = nn.BatchNorm2d if self._is_image else nn.BatchNorm1d
        return kind(width)
