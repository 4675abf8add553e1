"""The constants in which the bounds differ: how old gradients are, and what that costs.

    proof        its step                                           what it needs
    published    Huo et al.: K M + sigma K^4 M                      delays of DDG; step L <= 1
    blockwise    the same argument with the sum of squared delays   step L <= 1
    virtual      the iterates that batches have written in full     nothing more

All three bound the same average of squared gradients. ``docs/theory.md`` says where the published
argument has gaps, why its constants survive them, and derives the other two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from delaygrad.theory.assumptions import Assumptions, check_delay, check_delays, check_positive

Proof = Literal["published", "blockwise", "virtual"]
"""Whose constants: the paper's, those of its argument done block by block, or those of the argument
over virtual iterates, which are the smallest."""


def sigma(step_sizes: Sequence[float], delay: int) -> float:
    """Return by how much step sizes fall within a delay: max over t of step[t - delay] / step[t].

    Args:
        step_sizes: one for each iteration from 0, positive. Before iteration 0 counts as
            iteration 0.
        delay: the largest, in updates; K - 1 for K stages.

    Returns:
        1 for a constant step; larger for steps that fall.

    Example:
        >>> sigma([1.0, 1.0, 0.5, 0.25], delay=1)
        2.0

    References:
        Huo et al., ICML 2018, arXiv:1804.10574, the lemma of section 4.
    """
    check_delay(delay)
    for step in step_sizes:
        check_positive("step", step)
    return max(step_sizes[max(0, t - delay)] / step_sizes[t] for t in range(len(step_sizes)))


def delay_squares(delays: Sequence[int]) -> int:
    """Return S, the sum over stages of the squared delay; about K^3 / 3 for K stages of DDG.

    Example:
        >>> delay_squares([3, 2, 1, 0]), delay_squares([1, 1, 1, 0])  # micro_batches=4
        (14, 3)
    """
    check_delays(delays)
    return sum(delay**2 for delay in delays)


def staleness_moment(assumptions: Assumptions, delays: Sequence[int]) -> float:
    """Return V: the mean squared length of what is still to be written, in units of the step.

    Batch s is forwarded at w@s while stage k still owes delay(k) older batches their update. What
    all owe is at most as long as D gradients, D the largest delay; where the stages' own moments
    are known, stage k's part is at most delay(k) of its own blocks:

        V = min(D^2 M, sum over k of delay(k)^2 M_k)

    Args:
        assumptions: of these ``second_moment`` and ``stage_moments``.
        delays: of each stage, in updates.

    Raises:
        ValueError: there are stage moments, but not one for each stage.

    Example:
        >>> even = (0.25, 0.25, 0.25, 0.25)
        >>> known = Assumptions(smoothness=1.0, second_moment=1.0, gap=1.0, stage_moments=even)
        >>> staleness_moment(known, [3, 2, 1, 0])
        3.5

    References:
        docs/theory.md, section 4.
    """
    check_delays(delays)
    moment = float(max(delays) ** 2 * assumptions.second_moment)
    if assumptions.stage_moments is None:
        return moment
    if len(assumptions.stage_moments) != len(delays):
        raise ValueError(
            f"stage_moments must hold one number per stage (stage_moments: "
            f"{len(assumptions.stage_moments)}, delays: {len(delays)})"
        )
    weighted = np.dot(np.square(delays), assumptions.stage_moments)
    return min(moment, float(weighted))


def effective_moment(
    assumptions: Assumptions,
    delays: Sequence[int],
    *,
    sigma: float = 1.0,
    proof: Proof = "virtual",
) -> float:
    """Return M_K: what takes the place of M once gradients are delayed.

    With it every proof has the same form, if step L <= 1:

        E f(w@(t+1)) - E f(w@t) <= -(step / 2) E |grad f(w@t)|^2 + step^2 L M_K

    (for ``"virtual"``, f at the virtual iterates). With S = ``delay_squares``, V =
    ``staleness_moment``:

        published   K M + sigma K^4 M
        blockwise   K M (1 + sigma (S + 2 sqrt S)) / 2
        virtual     (M + sigma V) / 2

    Args:
        assumptions: of these ``second_moment`` and ``stage_moments``.
        delays: of each stage, in updates.
        sigma: as the function of that name returns; 1 for a fixed step.
        proof: which one.

    Raises:
        ValueError: ``sigma`` is below 1, or the delays exceed those that ``"published"`` is for.

    Example:
        >>> plain = Assumptions(smoothness=1.0, second_moment=1.0, gap=1.0)
        >>> [effective_moment(plain, [3, 2, 1, 0], proof=p) for p in ("published", "virtual")]
        [260.0, 5.0]

    References:
        Huo et al., ICML 2018, arXiv:1804.10574: M_K in the lemma of section 4 (as recalled).
        docs/theory.md, sections 3 and 4, for the others.
    """
    check_delays(delays)
    if not 1 <= sigma < math.inf:
        raise ValueError(f"sigma must be at least 1 and finite (sigma: {sigma})")
    moment, num_stages = assumptions.second_moment, len(delays)
    if proof == "published":
        _check_published(delays)
        return num_stages * moment + sigma * num_stages**4 * moment
    if proof == "blockwise":
        squares = delay_squares(delays)
        return num_stages * moment * (1 + sigma * (squares + 2 * math.sqrt(squares))) / 2
    if proof == "virtual":
        return (moment + sigma * staleness_moment(assumptions, delays)) / 2
    raise ValueError(f"unknown proof ({proof!r}); known: published, blockwise, virtual")


def _check_published(delays: Sequence[int]) -> None:
    allowed = [len(delays) - 1 - k for k in range(len(delays))]
    if any(delay > most for delay, most in zip(delays, allowed, strict=True)):
        raise ValueError(
            f"the published constants are for delays of at most K-1-k (delays: {list(delays)}, at "
            f"most: {allowed}); use proof 'virtual'"
        )
