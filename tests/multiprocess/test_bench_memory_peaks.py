"""Measured peaks of real processes, against the formula."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delaygrad.bench.memory_peaks import MemoryCase, measure_peaks, predict_peaks
from delaygrad.methods import DDG
from delaygrad.models import resnet

pytestmark = pytest.mark.slow

CUTS = ["group2_block1"]


def training(batch_size: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    network = resnet(20, num_classes=10).to(memory_format=torch.channels_last)
    return network, images, torch.randint(10, (batch_size,))


def case(method: DDG) -> MemoryCase:
    return MemoryCase(
        make=partial(training, 32),
        loss_fn=F.cross_entropy,
        num_stages=2,
        method=method,
    )


@pytest.mark.parametrize("method", [DDG(), DDG(recompute=True)], ids=repr)
def test_formula_tells_the_measured_peak(method: DDG) -> None:
    own = case(method)
    before = dict(os.environ)
    measured = measure_peaks(own, CUTS)
    predicted = [memory.total_bytes for memory in predict_peaks(own, CUTS)]
    assert measured == pytest.approx(predicted, rel=0.15)
    assert {k: v for k, v in os.environ.items() if "LOG_LEVEL" in k} == {
        k: v for k, v in before.items() if "LOG_LEVEL" in k
    }
