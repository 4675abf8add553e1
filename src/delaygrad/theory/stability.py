"""The largest stable step on a quadratic, for a delay of D updates.

On curvature h w^2 / 2, with a = step h, the update of ``torch.optim.SGD`` with a gradient D updates
old is a linear recursion. It is stable while the roots of its characteristic polynomial stay inside
the unit circle:

    no momentum    (z - 1) z^D + a
    momentum m     (z - 1)(z - m) z^D + a z
    Nesterov m     (z - 1)(z - m) z^D + a ((1 + m) z - m)

With gradients at predicted parameters w + H (w - w_prev), the term with a is multiplied by
((1 + H) z - H), and the other by z.

With micro-batches D may be a fraction d + f: a share f of an update's gradient is d + 1 updates
old, the rest d. The term with a, at delay d + 1, is then multiplied by ((1 - f) z + f).

A network is locally such a quadratic along every eigenvector of its Hessian, if all stages have the
same delay; with the delays D, D-1, .., 0 of DDG, the first stage is the one to worry about.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from delaygrad.theory.constants import check_positive

_BISECTIONS = 60
"""Halvings of an interval: more than the bits of a float."""
_UNSTABLE = 8.0
"""A step above every limit; without delay, or with a quarter of the parts late, limits reach 4."""


def largest_stable_step(
    delay: float,
    *,
    curvature: float = 1.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    horizon: float = 0.0,
) -> float:
    """Return the step size at which delayed SGD on a quadratic stops being stable.

    Without momentum it is known in closed form, 2 sin(pi / (4 D + 2)) / curvature; with momentum or
    a prediction it is found by bisection over the roots of the characteristic polynomial.

    Args:
        delay: D, in updates; 0 is ordinary gradient descent. With M micro-batches it is lag / M.
        curvature: h, the largest eigenvalue of the Hessian, positive.
        momentum: m, at least 0 and below 1.
        nesterov: whether it is Nesterov's, as ``torch.optim.SGD(nesterov=True)``.
        horizon: H, updates that the gradient's parameters look ahead; at least 0.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> [round(largest_stable_step(delay), 4) for delay in (0, 1, 3, 7)]
        [2.0, 1.0, 0.445, 0.2091]
        >>> [round(largest_stable_step(delay, momentum=0.9), 4) for delay in (0, 1, 3, 7)]
        [3.8, 0.1, 0.0348, 0.0158]
        >>> m_is_2k = largest_stable_step(0.5, momentum=0.9, horizon=1.5)  # Lookahead, M = 2 (K-1)
        >>> round(m_is_2k / largest_stable_step(1, momentum=0.9, horizon=2), 1)
        2.5

    References:
        The root condition of z^(D+1) - z^D + a: Levin and May, Theoretical Population Biology 9
        (1976).
    """
    _check_mean_delay(delay)
    check_positive("curvature", curvature)
    if momentum == horizon == 0 and delay == int(delay):
        _check_momentum(momentum, nesterov)
        return 2 * math.sin(math.pi / (4 * delay + 2)) / curvature
    stable, unstable = 0.0, _UNSTABLE
    for _ in range(_BISECTIONS):
        middle = (stable + unstable) / 2
        radius = spectral_radius(
            delay, middle, momentum=momentum, nesterov=nesterov, horizon=horizon
        )
        stable, unstable = (middle, unstable) if radius < 1 else (stable, middle)
    return stable / curvature


def spectral_radius(
    delay: float,
    step: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    horizon: float = 0.0,
) -> float:
    """Return by what factor an error on a quadratic of curvature 1 shrinks, or grows, per update.

    Example:
        >>> round(spectral_radius(0, 0.1), 6)  # w - 0.1 w
        0.9
    """
    coefficients = characteristic_polynomial(
        delay, step, momentum=momentum, nesterov=nesterov, horizon=horizon
    )
    return float(np.abs(np.roots(coefficients)).max())


def characteristic_polynomial(
    delay: float,
    step: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    horizon: float = 0.0,
) -> npt.NDArray[np.float64]:
    """Return the coefficients of the recursion's polynomial, of the highest power first.

    Example:
        >>> characteristic_polynomial(2, 0.5).tolist()
        [1.0, -1.0, 0.0, 0.5]
    """
    _check_mean_delay(delay)
    _check_momentum(momentum, nesterov)
    if not horizon >= 0:
        raise ValueError(f"horizon must be at least 0 (horizon: {horizon})")
    others, gradient = np.poly([1.0]), np.array([step])
    updates, share = int(delay), delay - int(delay)
    if momentum:
        others = np.poly([1.0, momentum])
        gradient = step * np.array([1 + momentum, -momentum] if nesterov else [1.0, 0.0])
    if share:
        gradient, updates = np.polymul(gradient, [1 - share, share]), updates + 1
    if horizon:
        gradient, updates = np.polymul(gradient, [1 + horizon, -horizon]), updates + 1
    polynomial: npt.NDArray[np.float64] = np.concatenate([others, np.zeros(updates)])
    polynomial[-len(gradient) :] += gradient
    return polynomial


def _check_mean_delay(delay: float) -> None:
    if not 0 <= delay < math.inf:
        raise ValueError(f"a delay is a number of updates, at least 0 (delay: {delay})")


def _check_momentum(momentum: float, nesterov: bool) -> None:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1 (momentum: {momentum})")
    if nesterov and momentum == 0:
        raise ValueError("nesterov needs a momentum above 0 (momentum: 0.0)")
