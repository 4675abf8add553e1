"""One stage: its arithmetic, written once, for every runtime."""

from delaygrad.stage.losses import LossWeight
from delaygrad.stage.network import (
    LossFunction,
    by_caller,
    device_of,
    require_one_batch,
)
from delaygrad.stage.stage import Stage

__all__ = [
    "LossFunction",
    "LossWeight",
    "Stage",
    "by_caller",
    "device_of",
    "require_one_batch",
]
