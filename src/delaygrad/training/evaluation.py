"""Accuracy and loss over exactly the samples of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional

from delaygrad.data import Dataset
from delaygrad.runtime import Pipeline
from delaygrad.runtime.control import Control


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of (..., num_classes) logits and (...) class indices."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@dataclass(frozen=True)
class Evaluation:
    """How well the live parameters do; a prediction is of a sample, or of a character of text."""

    accuracy: float
    loss: float
    num_predictions: int


def evaluate(
    pipeline: Pipeline,
    control: Control,
    dataset: Dataset,
    *,
    batch_size: int,
    place: Callable[[Tensor], Tensor],
) -> Evaluation:
    """Predict every sample once; all ranks call it, and get the same result.

    ``place`` brings inputs where the first stage wants them.
    """
    correct, loss_sum, count = 0, 0.0, 0
    for start in range(0, dataset.num_samples, batch_size):
        indices = np.arange(start, min(start + batch_size, dataset.num_samples))
        outputs = pipeline.predict(place(dataset.inputs(indices)) if control.rank == 0 else None)
        if control.is_last:
            targets = dataset.targets(indices).to(outputs.device)
            loss_sum += cross_entropy(outputs, targets).item() * targets.numel()
            correct += int((outputs.argmax(-1) == targets).sum())
            count += targets.numel()
    sums = control.gather((correct, loss_sum, count))
    correct, loss_sum, count = control.broadcast(sums[-1] if sums else None)
    return Evaluation(correct / count, loss_sum / count, count)
