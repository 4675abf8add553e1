"""Pipelined backpropagation with spike compensation and linear weight prediction.

Kosson, Chiley, Venigalla, Hestness, Koster, "Pipelined Backpropagation at Scale", MLSys 2021,
arXiv:2003.11666.

    paper    here
    D        the delay of stage k, in updates
    SC_D     SpikeCompensation
    LWP_D    Predicted("largest"): w + D (w - w_prev), the paper's weight-difference form

Deviation: a backward meets the parameters that its forward met. In the paper it meets the current
parameters, unless stashing is named.
"""

from __future__ import annotations

from delaygrad.methods.axes import Live, Predicted, SpikeCompensation
from delaygrad.methods.method import Method, published
from delaygrad.schedule import unlocked


@published("pipelined backpropagation with spike compensation")
def PipelinedBP(spike: bool = True, predict: bool = True) -> Method:
    """Compensate late gradients of SGD with momentum.

    Args:
        spike: compensate in the update.
        predict: meet parameters predicted D updates ahead.
    """
    return Method(
        name="pipelinedbp",
        schedule=unlocked(),
        forward_weights=Predicted("largest") if predict else Live(),
        update=(SpikeCompensation(),) if spike else (),
    )
