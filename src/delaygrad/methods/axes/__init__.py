"""The axes of a method: each a family of small frozen values."""

from delaygrad.methods.axes.axis import Axis, plain
from delaygrad.methods.axes.clipping import ClipNorm
from delaygrad.methods.axes.corrections import (
    DelayCompensation,
    DelayScaledLR,
    ErrorFeedback,
    SpikeCompensation,
)
from delaygrad.methods.axes.error_gradient import (
    ErrorGradient,
    LocalGradients,
    Received,
    Shrunk,
)
from delaygrad.methods.axes.forward_weights import ForwardWeights, Live, Predicted
from delaygrad.methods.axes.linearise import Graph, Linearise, Replay, require_narrow
from delaygrad.methods.axes.local_head import LocalHead
from delaygrad.methods.axes.loss_scale import LossScale
from delaygrad.methods.axes.synthetic import Synthetic
from delaygrad.methods.axes.update import Step, Update

__all__ = [
    "Axis", "ClipNorm", "DelayCompensation", "DelayScaledLR", "ErrorFeedback", "ErrorGradient",
    "ForwardWeights", "Graph", "Linearise", "Live", "LocalGradients", "LocalHead", "LossScale",
    "Predicted", "Received", "Replay", "Shrunk", "SpikeCompensation", "Step", "Synthetic",
    "Update", "plain", "require_narrow",
]  # fmt: skip
