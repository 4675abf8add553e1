"""PipeOptim: forward at predicted parameters, backward at the current parameters.

Guan, Li, Li, Qiao, "PipeOptim: Ensuring Effective 1F1B Schedule With Optimizer-Dependent Weight
Prediction", IEEE TKDE 2025, arXiv:2312.00839.

    paper       here
    s           the delay of stage k, in updates
    Delta w_t   the optimizer's last move: w_prev - w = lr Delta w_t

    forward   v = w - s lr Delta w_t = w + s (w - w_prev)
    backward  the forward runs again on the kept input with the current parameters

For SGD with momentum, Adam and AdamW, the paper's direction times the learning rate is the last
change by the optimizer. So no optimizer needs a formula of its own. Deviation: for one update after
a change of the learning rate, this rule scales by the old rate and the paper by the new one.
"""

from __future__ import annotations

from delaygrad.methods.axes import Predicted, Replay
from delaygrad.methods.method import Method, published
from delaygrad.schedule import unlocked


@published("PipeOptim, with predicted weights in the forward")
def PipeOptim(micro_batches: int = 1) -> Method:
    """Predict each stage's parameters at the time of their update, in the forward only.

    Args:
        micro_batches: parts that a batch is split into, at least 1.

    Raises:
        ScheduleError: ``micro_batches`` is below 1.
    """
    return Method(
        name="pipeoptim",
        schedule=unlocked(micro_batches),
        forward_weights=Predicted("largest"),
        linearise=Replay(weights="live"),
    )
