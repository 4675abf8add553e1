"""Features replay (FR).

Huo, Gu, Huang, "Training Neural Networks Using Features Replay", NeurIPS 2018, arXiv:1807.04511.

    paper                here
    module k = 1..K      stage k = 0..K-1
    h^{t-K+k}_{L_{k-1}}  the input of batch s = t - delay(k), delay(k) = K-1-k

    iteration t, every stage k:
      forward   batch t with w[k]@t; only its input is kept (*play*)
      backward  batch s: the forward runs again on the kept input with w[k]@t (*replay*); its
                graph gets the error gradient that stage k+1 made for batch s at iteration t-1
      update    w[k]@(t+1) = optimizer(w[k]@t, that gradient)

No older parameters are kept, and only one graph at a time. The input of a stage comes from w@s, the
parameters are w@t, so the gradient belongs to no single iterate. Each batch costs one more forward.
Deviations: BatchNorm's running statistics change once per batch, in the first forward; in the
authors' code they change twice. ``slack`` and ``micro_batches`` as in `DDG`, not in the paper.
"""

from __future__ import annotations

from delaygrad.methods.axes import Replay
from delaygrad.methods.method import Method, published
from delaygrad.schedule import locked


@published("features replay")
def FR(slack: int = 0, micro_batches: int = 1) -> Method:
    """Replay the features of a batch in flight with the current parameters.

    Args:
        slack: additional ticks of lag per boundary, at least 0.
        micro_batches: parts that a batch is split into, at least 1.

    Raises:
        ScheduleError: a number is out of range.

    References:
        Huo et al., NeurIPS 2018, arXiv:1807.04511, Algorithm 1.
        Differs: see ``delaygrad.methods.fr``.
    """
    schedule = locked(slack, micro_batches)
    return Method(name="fr", schedule=schedule, linearise=Replay(weights="live"))
