"""One-step delay with error feedback.

Zmushko et al., ICML 2026, arXiv:2606.30634 (recalled from an implementation that cites it).

    paper    here
    c        strength
    u        the last change of the parameters by the optimizer

    schedule  that of PipeDream-2BW: with M >= 2 (K-1) micro-batches no gradient is more than one
              update late
    update    w = w - u - c (u - u_before)

Deviation: the last stage has no delay, and is not corrected.
"""

from __future__ import annotations

from delaygrad.methods.axes import ErrorFeedback
from delaygrad.methods.method import Method, published
from delaygrad.schedule import unlocked


@published("one-step delay with error feedback")
def DelayedEF(micro_batches: int, strength: float = 1.0) -> Method:
    """Add to each update its difference to the update before.

    Args:
        micro_batches: M, parts that a batch is split into; 2 (K-1) or more.
        strength: c; 1 for Adam, the momentum for SGD.

    Raises:
        ScheduleError: ``micro_batches`` is below 1.
    """
    return Method(
        name="delayedef", schedule=unlocked(micro_batches), update=(ErrorFeedback(strength),)
    )
