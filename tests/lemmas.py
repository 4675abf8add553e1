"""What one update may do to the loss, and the step of the 1 / sqrt(T) rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from delaygrad.theory import (
    Assumptions,
    Proof,
    check_step_sizes,
    effective_moment,
    staleness_moment,
)


def one_step_bound(
    assumptions: Assumptions,
    delays: Sequence[int],
    *,
    step: float,
    gradient_squared: float,
    sigma: float = 1.0,
    proof: Proof = "virtual",
) -> float:
    """Return the most by which one update may change the expected loss; negative is progress.

        published, blockwise    E f(w@(t+1)) - E f(w@t) <= -(step/2) G + step^2 L M_K
        virtual                 E f(v@(t+1)) - E f(v@t) <= -(step/2 sigma) G
                                                           + step^2 L M / 2 + step^3 L^2 V / 2

    with G = E |grad f(w@t)|^2 and v@t the virtual iterate, in which every stage has used exactly
    the batches before t. The first two hold from iteration ``max(delays)`` on: in the fill a stage
    that has no gradient yet makes no progress, whatever G is.

    Example:
        >>> plain = Assumptions(smoothness=2.0, second_moment=1.0, gap=1.0)
        >>> one_step_bound(plain, [0], step=0.1, gradient_squared=0.5)
        -0.015

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, the lemma of section 4 (as recalled).
        docs/theory.md, sections 3 and 4.
    """
    moment = effective_moment(assumptions, delays, sigma=sigma, proof=proof)
    smoothness = assumptions.smoothness
    if proof != "virtual":
        check_step_sizes([step], smoothness)
        return -step / 2 * gradient_squared + step**2 * smoothness * moment
    stale = staleness_moment(assumptions, delays)
    noise = step**2 * smoothness * assumptions.second_moment + step**3 * smoothness**2 * stale
    return (noise - step / sigma * gradient_squared) / 2


def root_rate_step(
    assumptions: Assumptions,
    delays: Sequence[int],
    *,
    iterations: int,
    scale: float = 1.0,
    proof: Proof = "published",
) -> float:
    """Return the step that makes the bound fall as 1 / sqrt(T): scale sqrt(F / (T L M_K)).

    The paper's corollary: with this step, if step L <= 1,

        min over t of E |grad f(w@t)|^2 <= (2 + 2 scale^2) / scale  sqrt(F L M_K / T)

    which ``fixed_step_bound`` gives for it. For ``"virtual"`` M_K is M / 2 here, and the delay does
    not enter the step; it adds to the bound what falls faster than 1 / sqrt(T).

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, the corollary to the theorem on a fixed learning
        rate (as recalled); scale is its epsilon.
    """
    moment = assumptions.second_moment / 2
    if proof != "virtual":
        moment = effective_moment(assumptions, delays, proof=proof)
    return scale * math.sqrt(assumptions.gap / (iterations * assumptions.smoothness * moment))
