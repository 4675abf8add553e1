"""What waits between the forward and the backward of a batch: its graph and its parameters."""

from delaygrad.stash.batches import Pending, PendingTarget, Stash
from delaygrad.stash.forward_effects import same_values
from delaygrad.stash.parameters import ParameterStash
from delaygrad.stash.partial_gradients import PartialGradients
from delaygrad.stash.prediction import PredictedStash
from delaygrad.stash.replay import (
    BufferStash,
    as_it_was,
    autocast_dtype,
    checksum,
    require_same_outputs,
)
from delaygrad.stash.rounding import saving_rounded
from delaygrad.stash.version import ParameterSlot, ParameterVersion, move_gradient

__all__ = [
    "BufferStash",
    "ParameterSlot",
    "ParameterStash",
    "ParameterVersion",
    "PartialGradients",
    "Pending",
    "PendingTarget",
    "PredictedStash",
    "Stash",
    "as_it_was",
    "autocast_dtype",
    "checksum",
    "move_gradient",
    "require_same_outputs",
    "same_values",
    "saving_rounded",
]
