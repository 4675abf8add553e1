"""PipeMare: no older parameters are kept, and the learning rates of delayed stages start small.

Yang, Zhang, Li, Re, Aberger, De Sa, "PipeMare: Asynchronous Pipeline Parallel DNN Training", MLSys
2021, arXiv:1910.05124.

    paper            here
    tau_fwd,i        the delay of stage k
    T1, K            DelayScaledLR, anneal

    backward  the activations of the forward, the current parameters
    update    lr[k] = lr / D_k^p, p falling from 1 to 0

Deviations: technique T2 (discrepancy correction) and T3 (synchronous warm-up) are left out.
"""

from __future__ import annotations

from delaygrad.methods.axes import DelayScaledLR, Graph
from delaygrad.methods.method import Method, published
from delaygrad.schedule import unlocked


@published("PipeMare, with learning rates scaled by delay")
def PipeMare(anneal: int = 1000, micro_batches: int = 1) -> Method:
    """Meet the current parameters in the backward; at first divide learning rates by the delay.

    Args:
        anneal: updates until every stage has the user's learning rate, at least 1.
        micro_batches: parts that a batch is split into, at least 1.

    Raises:
        ScheduleError, ValueError: a number is out of range.
    """
    return Method(
        name="pipemare",
        schedule=unlocked(micro_batches),
        linearise=Graph(weights="live"),
        update=(DelayScaledLR(anneal),),
    )
