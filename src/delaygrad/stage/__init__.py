"""One stage: its arithmetic, written once, for every runtime."""

from delaygrad.stage.losses import LossWeight
from delaygrad.stage.network import LossFunction, MakeOptimizer, device_of
from delaygrad.stage.stage import Stage
from delaygrad.stage.synthetic import SyntheticStage, stage_class

__all__ = [
    "LossFunction",
    "LossWeight",
    "MakeOptimizer",
    "Stage",
    "SyntheticStage",
    "device_of",
    "stage_class",
]
