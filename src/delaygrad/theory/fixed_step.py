"""Which fixed step to take for a number of iterations, and what is promised for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from delaygrad.theory.assumptions import Assumptions, check_positive
from delaygrad.theory.bounds import fixed_step_bound
from delaygrad.theory.constants import Proof, effective_moment, staleness_moment


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a proof promises for the step it likes best.

    Args:
        proof: whose constants.
        step: the fixed step size.
        bound: of the average of E |grad f(w@t)|^2 over the iterations.
        is_vacuous: the bound says no more than the second moment M does by itself.
    """

    proof: Proof
    step: float
    bound: float
    is_vacuous: bool


def promise(
    assumptions: Assumptions,
    delays: Sequence[int],
    *,
    iterations: int,
    proof: Proof = "virtual",
) -> Promise:
    """Answer the user's question: how large a step, and what will it give?

    Args:
        assumptions: of the loss.
        delays: of each stage, in updates: ``method.schedule.delay(k, num_stages)``.
        iterations: T.
        proof: whose constants.

    Raises:
        ValueError: a number is out of the proof's range.

    Example:
        >>> plain = Assumptions(smoothness=2.0, second_moment=1.0, gap=1.0)
        >>> promise(plain, [3, 2, 1, 0], iterations=100, proof="published").is_vacuous
        True
    """
    step = best_fixed_step(assumptions, delays, iterations=iterations, proof=proof)
    bound = fixed_step_bound(assumptions, delays, step=step, iterations=iterations, proof=proof)
    vacuous = bound >= assumptions.second_moment
    return Promise(proof=proof, step=step, bound=bound, is_vacuous=vacuous)


def best_fixed_step(
    assumptions: Assumptions,
    delays: Sequence[int],
    *,
    iterations: int,
    proof: Proof = "virtual",
) -> float:
    """Return the step for which a proof promises most over T iterations.

        published, blockwise    sqrt(F / (T L M_K)), at most 1/L
        virtual                 the root of 2 L^2 V step^3 + L M step^2 = 2 F / T, which minimises
                                the simple form 2 A + s^2 of its bound

    Without delay the last is sqrt(2 F / (T L M)), the textbook step of SGD; with delay and T large
    it hardly differs from it.

    Args:
        assumptions: of the loss.
        delays: of each stage, in updates.
        iterations: T.
        proof: whose constants.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> plain = Assumptions(smoothness=2.0, second_moment=1.0, gap=1.0)
        >>> round(best_fixed_step(plain, [0], iterations=10_000), 6)
        0.01
        >>> round(best_fixed_step(plain, [3, 2, 1, 0], iterations=10_000), 6)
        0.008724
    """
    check_positive("iterations", iterations)
    if proof != "virtual":
        step = root_rate_step(assumptions, delays, iterations=iterations, proof=proof)
        return min(step, 1 / assumptions.smoothness)
    stale = staleness_moment(assumptions, delays)
    smoothness, moment = assumptions.smoothness, assumptions.second_moment
    target = 2 * assumptions.gap / iterations
    if stale == 0:
        return math.sqrt(target / (smoothness * moment))
    roots = np.roots([2 * smoothness**2 * stale, smoothness * moment, 0.0, -target])
    return float(max(root.real for root in roots))  # one change of sign: one positive root


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

    Args:
        assumptions: of the loss.
        delays: of each stage, in updates.
        iterations: T.
        scale: the paper's epsilon, positive.
        proof: whose M_K.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> plain = Assumptions(smoothness=2.0, second_moment=1.0, gap=1.0)
        >>> step = root_rate_step(plain, [1, 0], iterations=10_000)
        >>> bound = fixed_step_bound(plain, [1, 0], step=step, iterations=10_000, proof="published")
        >>> round(bound, 6) == round(4 * (1.0 * 2.0 * 18.0 / 10_000) ** 0.5, 6)
        True

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, the corollary to the theorem on a fixed learning
        rate (as recalled).
    """
    check_positive("scale", scale)
    check_positive("iterations", iterations)
    moment = assumptions.second_moment / 2
    if proof != "virtual":
        moment = effective_moment(assumptions, delays, proof=proof)
    return scale * math.sqrt(assumptions.gap / (iterations * assumptions.smoothness * moment))
