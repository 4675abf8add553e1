"""Backpropagation through the same stages: the baseline.

Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", Nature 1986.

    w[k]@(t+1) = w[k]@t - lr * grad_k f(batch t; w@t)          for every stage k

One stage works at a time: it waits for the forward of the stages below and the backward of the
stages above. With ``micro_batches`` the gradient is accumulated over parts of the batch. The loss
is still the mean over the batch, but BatchNorm sees a part only. Deviations: none.

``lookahead`` takes the gradient at predicted parameters: a fair baseline for methods that predict.
"""

from __future__ import annotations

from delaygrad.methods.axes import Live, Predicted
from delaygrad.methods.method import Method, published
from delaygrad.schedule import flush


@published("backpropagation")
def BP(micro_batches: int = 1, lookahead: float = 0.0) -> Method:
    """Backpropagation, one batch at a time.

    Args:
        micro_batches: parts that a batch is split into, at least 1.
        lookahead: h, to take gradients at w + h (w - w_prev); 0 is plain backpropagation. With
            heavy-ball momentum, 1 comes close to Nesterov's momentum.

    Raises:
        ScheduleError: ``micro_batches`` is below 1.

    Example:
        >>> BP().schedule.delay(0, 4)
        0
    """
    forward_weights = Predicted(offset=lookahead) if lookahead else Live()
    return Method(name="bp", schedule=flush(micro_batches), forward_weights=forward_weights)
