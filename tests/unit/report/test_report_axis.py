from __future__ import annotations

import math
import random

import pytest

from delaygrad.report.axis import fit_axis


@pytest.mark.parametrize("log", [False, True])
def test_all_values_and_ticks_lie_on_the_axis(log: bool) -> None:
    draw = random.Random(0)
    for _ in range(300):
        scale = 10 ** draw.uniform(-8, 8)
        values = [scale * draw.uniform(0.001, 1) for _ in range(draw.randint(1, 5))]
        axis = fit_axis("x", values, log=log)
        assert axis.log is log
        assert all(0 <= axis.place(value) <= 1 for value in values)
        assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick in axis.ticks)
        assert list(axis.ticks) == sorted(set(axis.ticks)) and 2 <= len(axis.ticks) <= 12


def test_places_are_proportional_or_logarithmic() -> None:
    linear = fit_axis("x", [0.0, 10.0], tight=True)
    assert [linear.place(value) for value in (0, 2.5, 10)] == [0, 0.25, 1]
    log = fit_axis("x", [0.01, 100.0], log=True, tight=True)
    assert log.place(1.0) == pytest.approx(0.5) and log.ticks == (0.01, 0.1, 1.0, 10.0, 100.0)


def test_odd_input_still_has_an_axis() -> None:
    assert fit_axis("x", []).ticks
    for alone in (5.0, -5.0, 0.0, 3.9e25, 1e-30):
        assert fit_axis("x", [alone, alone]).place(alone) == pytest.approx(0.5)
    assert fit_axis("x", [0.0, 1.0], log=True).log is False  # zero has no logarithm
    assert 3 <= len(fit_axis("x", [1e-30, 1e30], log=True).ticks) <= 12
    close = fit_axis("x", [1.0, math.nextafter(1.0, 2.0)])
    assert 0 <= close.place(1.0) <= 1 and close.ticks


def test_values_to_include_widen_the_axis() -> None:
    assert fit_axis("x", [3.0, 4.0], include=[0.0], tight=True).low == 0.0
