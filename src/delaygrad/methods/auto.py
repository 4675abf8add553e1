"""Choose the method by the number of stages, the batch size and the optimizer.

The rule follows what docs/depth.md reports as measured: many updates of delay cost accuracy, one
update costs less, a look-ahead removes much of it, and twice as many micro-batches the rest.

    K = 1                              BP
    batch of at least 2 (K-1) samples  Lookahead with M >= 2 (K-1): at least half of a batch is not
                                       late; DDG with that M if the optimizer looks ahead itself
                                       (Nesterov's momentum, NAdam)
    batch of at least K-1 samples      the same with M >= K-1
    smaller batch                      DDG with one micro-batch per sample
"""

from __future__ import annotations

from dataclasses import replace

from delaygrad.methods.bp import BP
from delaygrad.methods.ddg import DDG
from delaygrad.methods.lookahead import Lookahead, enough_micro_batches
from delaygrad.methods.method import Method, published
from delaygrad.schedule import locked


@published("the method that suits the number of stages")
def Auto() -> Method:
    """Choose the method and its micro-batches when the number of stages is known.

    ``pipe.method`` is what was chosen, and ``pipe.method.title`` says why. On the command line the
    batch size and the optimizer decide too.

    Example:
        >>> Auto().for_stages(5)
        Lookahead(micro_batches=8)
    """
    return Method(name="auto", schedule=locked(), complete=chosen)


def chosen(num_stages: int, batch_size: int | None = None, *, looks_ahead: bool = False) -> Method:
    """Return the method for a number of stages; its ``title`` says why.

    Args:
        num_stages: K.
        batch_size: samples per batch; None: enough.
        looks_ahead: whether the optimizer does itself, as with Nesterov's momentum.

    Example:
        >>> chosen(8, 64), chosen(8, 64, looks_ahead=True), chosen(8, 4), chosen(1)
        (Lookahead(micro_batches=16), DDG(micro_batches=16), DDG(micro_batches=4), BP())
        >>> chosen(8, 64).title.split(", and ")[1]
        'a look-ahead corrects late ones'
    """
    if num_stages == 1:
        return replace(BP(), title="one stage has no delay: backpropagation")
    needed = num_stages - 1
    if batch_size is not None and batch_size < needed:
        method = DDG(micro_batches=batch_size)
        delay = method.delay(0, num_stages)
        return replace(
            method,
            title=f"{batch_size} samples cannot be {needed} micro-batches, so gradients are up to "
            f"{delay} updates late, which costs accuracy; use larger batches or fewer stages",
        )
    half = batch_size is None or batch_size >= 2 * needed
    parts = enough_micro_batches(2 * needed if half else needed, batch_size)
    on_time = ", at least half are not late" if half else ""
    why = f"with {parts} micro-batches no gradient is more than one update late{on_time}, and "
    if looks_ahead:
        return replace(DDG(micro_batches=parts), title=why + "the optimizer looks ahead itself")
    return replace(Lookahead(parts), title=why + "a look-ahead corrects late ones")
