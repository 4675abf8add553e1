"""Constants that cannot be bounds of anything are refused, with their value."""

from __future__ import annotations

import math

import pytest

from delaygrad.theory import Assumptions


@pytest.mark.parametrize("name", ["smoothness", "second_moment", "gap"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_must_be_positive_and_finite(name: str, value: float) -> None:
    numbers = {"smoothness": 1.0, "second_moment": 1.0, "gap": 1.0, name: value}
    with pytest.raises(ValueError, match=f"{name} must be positive and finite .{name}: {value}"):
        Assumptions(**numbers)


@pytest.mark.parametrize("moments", [(0.5, -0.1), (math.nan,)])
def test_a_stage_moment_must_not_be_negative(moments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="stage moments must be finite, not negative"):
        Assumptions(smoothness=1.0, second_moment=1.0, gap=1.0, stage_moments=moments)
