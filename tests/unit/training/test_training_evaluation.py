"""Accuracy and loss are over exactly the samples of the data set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from delaygrad import LocalPipeline
from delaygrad.runtime.control import Solo
from delaygrad.training.evaluation import cross_entropy, evaluate


class Points:
    """Ten points in four classes; remembers which were asked for."""

    num_samples = 10

    def __init__(self) -> None:
        self.points = torch.randn(10, 4)
        self.classes = torch.randint(0, 4, (10,))
        self.asked: list[int] = []

    def inputs(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        assert rng is None
        self.asked += indices.tolist()
        return self.points[torch.from_numpy(indices)]

    def targets(self, indices: np.ndarray) -> Tensor:
        return self.classes[torch.from_numpy(indices)]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 256])
def test_every_sample_counts_once(batch_size: int) -> None:
    data, model = Points(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    pipeline = LocalPipeline([model[0], model[1]], cross_entropy, torch.optim.SGD)
    result = evaluate(pipeline, Solo(), data, batch_size=batch_size, place=lambda inputs: inputs)
    outputs = model(data.points)
    assert data.asked == list(range(10))
    assert result.num_predictions == 10
    assert result.accuracy == int((outputs.argmax(1) == data.classes).sum()) / 10
    expected = nn.functional.cross_entropy(outputs, data.classes).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)


def test_each_character_of_a_text_is_a_prediction() -> None:
    outputs = torch.randn(2, 5, 7)
    targets = torch.randint(0, 7, (2, 5))
    expected = nn.functional.cross_entropy(outputs.transpose(1, 2), targets)
    torch.testing.assert_close(cross_entropy(outputs, targets), expected)
