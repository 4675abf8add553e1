"""Delayed gradients with a look-ahead: the preset for many stages.

It combines two published ideas:

    micro-batches  with M >= (K-1)(1 + slack) no gradient is more than one update late, without a
                   bubble: PipeDream-2BW (Narayanan et al., ICML 2021, arXiv:2006.09503), ADL
                   (Zhuang et al., ICML 2021)
    prediction     forward and backward at the parameters that the update is expected to meet:
                   SpecTrain (Chen et al., arXiv:1809.02839), pipelined backpropagation (Kosson et
                   al., MLSys 2021, arXiv:2003.11666)

    tick n, every stage k:
      forward   micro-batch n with v[k] = w[k] + h[k] (w[k] - w_prev[k])
      backward  micro-batch n - lag(k), linearised at the v[k] of its forward
      update    after every M-th backward: w_prev[k] = w[k]; w[k] = optimizer(w[k], mean gradient)

    h[k] = lag(k) / M + 1, lag(k) = (K-1-k)(1 + slack): the mean staleness in updates, and one
    update more, as in Nesterov's momentum

The optimizer is unmodified. Evaluation, weight decay and the saved network use w. A stage keeps
w_prev, v and, while micro-batches of the update before wait, the older v: two to three copies of
its parameters, independent of K. With one stage it is ``BP(lookahead=1)``.
Deviation from the papers: the velocity is the last difference of the parameters, not the
optimizer's.
"""

from __future__ import annotations

from delaygrad.methods.axes import Predicted
from delaygrad.methods.method import Method, published
from delaygrad.schedule import locked


@published("delayed gradients with micro-batches and a look-ahead")
def Lookahead(micro_batches: int | None = None, slack: int = 0) -> Method:
    """Keep every gradient at most one update late, and take it at predicted parameters.

    Args:
        micro_batches: M, parts that a batch is split into; by default (K-1)(1 + slack), or a little
            more if that divides the batch. With fewer parts the delays grow, and the predictions
            look further ahead. With twice as many and momentum 0.9, the largest stable step is 2.5
            times larger.
        slack: additional ticks of lag per boundary, to hide a slow link; at least 0.

    Raises:
        ScheduleError: a number is out of range.

    Example:
        >>> method = Lookahead(micro_batches=4)
        >>> [method.delay(k, 5) for k in range(5)]
        [1, 1, 1, 1, 0]
        >>> Lookahead().for_stages(5)
        Lookahead(micro_batches=4)
    """

    def complete(num_stages: int, batch_size: int | None) -> Method:
        needed = max((num_stages - 1) * (1 + slack), 1)
        return Lookahead(enough_micro_batches(needed, batch_size), slack)

    return Method(
        name="lookahead",
        schedule=locked(slack, 1 if micro_batches is None else micro_batches),
        forward_weights=Predicted("mean", offset=1),
        complete=complete if micro_batches is None else None,
    )


def enough_micro_batches(needed: int, batch_size: int | None) -> int:
    """Return the smallest number from ``needed`` to twice that which divides the batch.

    If none does, the parts of a batch differ by a sample.

    Example:
        >>> enough_micro_batches(15, 64), enough_micro_batches(3, 100), enough_micro_batches(5, 13)
        (16, 4, 5)
    """
    options = range(needed, 2 * needed + 1)
    return next((m for m in options if batch_size and batch_size % m == 0), needed)
