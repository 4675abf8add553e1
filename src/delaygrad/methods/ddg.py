"""Decoupled parallel backpropagation with delayed gradients (DDG).

Huo, Gu, Yang, Huang, "Decoupled Parallel Backpropagation with Convergence Guarantee", ICML 2018,
arXiv:1804.10574.

    paper                  here
    module k = 1..K        stage k = 0..K-1, from the input
    t-K+k                  s = t - delay(k), delay(k) = K-1-k
    w^t_G(k)               w[k]@t
    gamma_t                lr

    iteration t, every stage k:
      forward   batch t with w[k]@t
      backward  batch s, linearised at w[k]@s, with the error gradient that stage k+1 made for the
                same batch at iteration t-1
      update    w[k]@(t+1) = optimizer(w[k]@t, that gradient)
      while s < 0: no backward, no update; gradients are None

Because all stages take batch s forward at the one iterate w@s, the gradient that stage k applies at
iteration s + delay(k) is exactly block k of the ordinary gradient of batch s at w@s.

With ``torch.optim.SGD`` this is the paper's Algorithm 1 (SGD-DDG), with ``torch.optim.Adam`` its
Algorithm 2 (Adam-DDG). Deviation: Adam's step count begins at a stage's first gradient, where the
paper counts the iterations of the fill as well, which would make its bias correction wrong there.

Options, none of them in the paper; with the defaults the rule is the paper's:

    slack           delay(k) = (K-1-k)(1 + slack): an error gradient may take longer
    micro_batches   M: a batch enters as M parts, one per tick; t and s above count ticks, and a
                    stage updates after every M-th backward, with the batch's mean gradient. The
                    delay falls to ceil(delay(k) / M) updates, the stashed graphs to 1/M of the
                    size; with M >= (K-1)(1 + slack) no stage keeps more than two versions of its
                    parameters, as in PipeDream-2BW (Narayanan et al., ICML 2021, arXiv:2006.09503)
    recompute       exact: the forward runs again, with the parameters and random numbers it had
    stash_dtype     not exact: stashed graphs hold their activations rounded to this type
    boundary_dtype  not exact: activations and error gradients cross boundaries in this type
    weights         "live" is not the paper's rule but that of its authors' code (slowbull/DDG,
                    ``main.py``, where ``optimizer.step()`` writes into the parameters that waiting
                    graphs refer to): the backward of batch s meets the activations and statistics
                    of its forward, and the parameters of today. Inside stage k, layer by layer,

                        grad_k = VJP(activations of batch s at w[k]@s; weights w[k]@t)

                    so that only the last stage's gradient is exact
"""

from __future__ import annotations

import torch

from delaygrad.methods.axes import Graph, Linearise, Replay
from delaygrad.methods.axes.linearise import Weights
from delaygrad.methods.method import Method, published
from delaygrad.schedule import locked


@published("decoupled parallel backpropagation with delayed gradients")
def DDG(
    slack: int = 0,
    micro_batches: int = 1,
    recompute: bool = False,
    stash_dtype: torch.dtype | None = None,
    boundary_dtype: torch.dtype | None = None,
    weights: Weights = "stash",
) -> Method:
    """Decoupled delayed gradients, exactly as published unless an option says otherwise.

    Args:
        slack: additional ticks of delay per boundary, to hide a slow link; at least 0.
        micro_batches: parts that a batch is split into, one update for all, at least 1. More parts
            take less memory, and the delay in updates is shorter.
        recompute: run the forward of a batch again before its backward, instead of keeping its
            activations: less memory, more time.
        stash_dtype: round the activations of batches in flight to bfloat16 or float16: less memory,
            not exact. In Python, ``torch.bfloat16`` or ``torch.float16``.
        boundary_dtype: round what is sent between stages to bfloat16 or float16: less traffic, not
            exact. In float16 gradients below 6e-8 vanish and activations above 65504 overflow.
        weights: "stash", the parameters of the batch's forward, is the paper's rule; "live", the
            newest parameters, is what the code of the paper's authors computes.

    Raises:
        ScheduleError: a number is out of range.
        ValueError: a dtype is neither of the two, ``weights`` is neither of the two, or
            ``recompute`` is combined with ``stash_dtype`` or with "live" weights.

    Example:
        >>> [DDG().schedule.delay(k, 4) for k in range(4)]
        [3, 2, 1, 0]
        >>> [DDG(micro_batches=4).schedule.delay(k, 4) for k in range(4)]
        [1, 1, 1, 0]

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, Algorithms 1 and 2.
        Differs: see ``delaygrad.methods.ddg``.
    """
    linearise: Linearise = Graph(weights, stash_dtype)
    if recompute and stash_dtype is not None:
        raise ValueError(
            "with recompute no activations wait that stash_dtype could round; leave one out"
        )
    if recompute and weights == "live":
        raise ValueError(
            "with weights='live' the activations must be those of the forward, which recompute "
            "does not keep; leave one out, or take FR, which computes them anew"
        )
    if recompute:
        linearise = Replay()
    return Method(
        name="ddg",
        schedule=locked(slack, micro_batches),
        linearise=linearise,
        boundary_dtype=boundary_dtype,
    )


def method_or_ddg(method: Method | None, num_stages: int | None = None) -> Method:
    """Return the method, DDG where none is given; for a number of stages, if it is known.

    Raises:
        TypeError: it is no Method, for instance a name, or a method's function that was not called.
    """
    if method is None:
        return DDG()
    if not isinstance(method, Method):
        given = getattr(method, "__name__", repr(method))
        raise TypeError(
            f"method is no Method (given: {given}); call a method's function, for example "
            "method=delaygrad.DDG()"
        )
    return method if num_stages is None else method.for_stages(num_stages)
