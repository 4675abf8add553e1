"""Diversely stale parameters (DSP): features replay on the unlocked schedule.

Xu, Huo, Huang, "On the Acceleration of Deep Learning Model Parallelism With Staleness", CVPR 2020,
arXiv:1909.02625.

    paper                here
    m_k                  2 (K-1-k): batches between forward and backward of stage k
    p_k                  1: a batch climbs one stage per iteration

    iteration t, stage k:
      backward  batch t - k - m_k: its forward runs again on the kept input with w[k]@t

Deviation: queues have the least length; the paper's longer ones absorb stragglers.
"""

from __future__ import annotations

from delaygrad.methods.axes import Replay
from delaygrad.methods.method import Method, published
from delaygrad.schedule import unlocked


@published("diversely stale parameters")
def DSP(micro_batches: int = 1) -> Method:
    """Unlock forward and backward, and replay with the current parameters.

    Args:
        micro_batches: parts that a batch is split into, at least 1.

    Raises:
        ScheduleError: ``micro_batches`` is below 1.
    """
    return Method(name="dsp", schedule=unlocked(micro_batches), linearise=Replay(weights="live"))
