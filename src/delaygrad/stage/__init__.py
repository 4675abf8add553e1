"""One stage: its arithmetic, written once, for every runtime."""

from delaygrad.stage.added_losses import add_loss
from delaygrad.stage.losses import LossWeight
from delaygrad.stage.network import (
    LossFunction,
    by_caller,
    device_of,
    require_one_batch,
    require_scalar,
)
from delaygrad.stage.stage import Stage

__all__ = [
    "LossFunction",
    "LossWeight",
    "Stage",
    "add_loss",
    "by_caller",
    "device_of",
    "require_one_batch",
    "require_scalar",
]
