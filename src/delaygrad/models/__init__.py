"""Networks to train, every one a plain ``nn.Sequential`` that can be cut between its children."""

from __future__ import annotations

from delaygrad.models.catalogue import build
from delaygrad.models.gpt import gpt
from delaygrad.models.mlp import mlp
from delaygrad.models.resnet import resnet, to_channels_last

__all__ = ["build", "gpt", "mlp", "resnet", "to_channels_last"]
