"""The largest stable step, against closed forms, the unit circle and the recursion itself.

``tests/equivalence/test_stability.py`` compares it with what the engine does.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
import pytest

from delaygrad.theory import characteristic_polynomial, largest_stable_step, spectral_radius

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "heavy ball": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "light ball": {"momentum": 0.3},
    "light nesterov": {"momentum": 0.3, "nesterov": True},
}


@pytest.mark.parametrize("delay", [0, 1, 3, 7, 15, 31])
def test_without_momentum_the_roots_meet_the_circle_at_the_closed_form(delay: int) -> None:
    step = 2 * math.sin(math.pi / (4 * delay + 2))
    assert largest_stable_step(delay, curvature=4.0) == pytest.approx(step / 4, rel=1e-14)
    assert spectral_radius(delay, step) == pytest.approx(1, abs=1e-12)
    assert spectral_radius(delay, 0.99 * step) < 1 < spectral_radius(delay, 1.01 * step)


def test_closed_forms_with_momentum() -> None:
    for momentum in (0.3, 0.9, 0.99):
        assert largest_stable_step(0, momentum=momentum) == pytest.approx(2 * (1 + momentum))
        assert largest_stable_step(1, momentum=momentum) == pytest.approx(1 - momentum)
        assert largest_stable_step(0, momentum=momentum, nesterov=True) == pytest.approx(
            2 * (1 + momentum) / (1 + 2 * momentum)
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", (2.0, 1.0, 0.445, 0.209, 0.1013, 0.0499)),
        ("heavy ball", (3.8, 0.1, 0.0348, 0.01575, 0.00793, 0.00418)),
        # Found independently by watching 3000 updates decay, so a little smaller than the roots'.
        ("nesterov", (None, 0.252, 0.0458, 0.0174, 0.0081, 0.0042)),
    ],
)
def test_the_table_for_momentum_0_9(name: str, expected: tuple[float | None, ...]) -> None:
    for delay, step in zip((0, 1, 3, 7, 15, 31), expected, strict=True):
        found = largest_stable_step(delay, **OPTIMIZERS[name])
        if name == "nesterov":
            assert step is None or step <= found <= 1.035 * step
        else:
            assert found == pytest.approx(step, rel=2e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("delay", [0, 1, 2, 5, 12])
def test_it_is_the_smallest_step_with_a_root_on_the_circle(name: str, delay: int) -> None:
    # On z = exp(i angle) the polynomial vanishes for one complex step; where that is real, a root
    # is on the circle. No stable step may lie beyond the smallest of these.
    options = OPTIMIZERS[name]
    nothing = characteristic_polynomial(delay, 0.0, **options)
    per_step = characteristic_polynomial(delay, 1.0, **options) - nothing
    angles = np.linspace(1e-4, math.pi, 200_001)
    circle = np.exp(1j * angles)
    steps = -np.polyval(nothing, circle) / np.polyval(per_step, circle)
    real = steps.imag[:-1] * steps.imag[1:] <= 0
    crossings = [*steps[:-1][real].real, steps[-1].real]  # the last: z = -1
    smallest = min(step for step in crossings if step > 0)
    assert largest_stable_step(delay, **options) == pytest.approx(smallest, rel=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_smaller_step_is_stable(name: str) -> None:
    for delay in (0, 1, 4, 9):
        limit = largest_stable_step(delay, **OPTIMIZERS[name])
        for share in np.linspace(0.02, 0.98, 25):
            assert spectral_radius(delay, share * limit, **OPTIMIZERS[name]) < 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_polynomial_is_that_of_the_recursion(name: str) -> None:
    # Along w[t] = z^t every root z solves SGD's own update, as PyTorch writes it.
    options, delay, step = OPTIMIZERS[name], 3, 0.02
    momentum = options.get("momentum", 0.0)
    for z in np.roots(characteristic_polynomial(delay, step, **options)):
        if abs(z) < 1e-6 or abs(z - momentum) < 1e-9:
            continue  # no power of zero, and the buffer's own decay
        gradient = z**-delay
        buffer = gradient / (1 - momentum / z)
        direction = gradient + momentum * buffer if options.get("nesterov") else buffer
        assert cmath.isclose(z, 1 - step * direction, rel_tol=1e-8)


@pytest.mark.parametrize("delay", [0.25, 0.5, 1.75])
@pytest.mark.parametrize("horizon", [0.0, 1.5])
def test_a_fraction_is_the_share_of_later_parts(delay: float, horizon: float) -> None:
    step, momentum, whole = 0.05, 0.9, int(delay)
    for z in np.roots(characteristic_polynomial(delay, step, momentum=momentum, horizon=horizon)):
        if abs(z) < 1e-6:
            continue
        seen = [z**-late * (1 + horizon - horizon / z) for late in (whole, whole + 1)]
        gradient = (whole + 1 - delay) * seen[0] + (delay - whole) * seen[1]
        assert cmath.isclose(z, 1 - step * gradient / (1 - momentum / z), rel_tol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": -1}, "a delay is a number of updates, at least 0"),
        ({"delay": math.nan}, "a delay is a number of updates, at least 0"),
        ({"delay": 1, "curvature": 0.0}, "curvature must be positive"),
        ({"delay": 1, "momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"delay": 1, "momentum": -0.1}, "momentum must be at least 0 and below 1"),
        ({"delay": 1, "nesterov": True}, "nesterov needs a momentum above 0"),
    ],
)
def test_a_number_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        largest_stable_step(**options)
