"""One axis of a plot: its range, its ticks, and where a value lies on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_LOG_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
_LEAST_TICKS, _MOST_TICKS = 3, 7
_MARGIN = 0.05  # of the range, above and below the data


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Values from low to high.

    Attributes:
        label: with the unit.
        low: the value at the axis's beginning.
        high: the value at its end; above ``low``.
        ticks: values between the two, in rising order.
        log: whether equal factors, not equal differences, are equally far apart.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies: 0 at the beginning, 1 at the end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


def fit_axis(
    label: str,
    values: Iterable[float],
    *,
    include: Iterable[float] = (),
    log: bool = False,
    tight: bool = False,
) -> Axis:
    """Choose an axis on which all values lie.

    Args:
        label: with the unit.
        values: finite; the log axis needs positive ones and is linear without.
        include: values that the axis shall show as well.
        log: prefer a logarithmic axis.
        tight: end with the data, leave no margin around them.

    Example:
        >>> axis = fit_axis("epoch", [0.5, 12.0], include=[0.0], tight=True)
        >>> axis.ticks
        (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
        >>> axis.place(6.0)
        0.5
        >>> fit_axis("loss", [0.02, 2.3], log=True).ticks
        (0.03, 0.1, 0.3, 1.0)
    """
    known = [*values, *include] or [0.0, 1.0]
    low, high = min(known), max(known)
    log = log and low > 0
    if low == high:  # one value alone: some room on both sides
        room = max(0.5, 0.001 * abs(low))
        low, high = (low / 2, high * 2) if log else (low - room, high + room)
    elif log and not tight:
        factor = (high / low) ** _MARGIN
        low, high = low / factor, high * factor
    elif not tight:
        low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    ticks = _log_ticks(low, high) if log else _linear_ticks(low, high)
    return Axis(label=label, low=low, high=high, ticks=ticks, log=log)


def _linear_ticks(low: float, high: float) -> tuple[float, ...]:
    # Imported here: worker processes import this package and draw nothing.
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(low, high)
    slip = 1e-9 * (high - low)
    ticks = tuple(float(tick) for tick in found if low - slip <= tick <= high + slip)
    return ticks or (low, high)


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(exponents) // _MOST_TICKS)  # decades apart, where there are many
    for steps in _LOG_STEPS:
        candidates = [float(f"{step}e{n}") for n in exponents[::every] for step in steps]
        ticks = tuple(tick for tick in candidates if low <= tick <= high)
        if len(ticks) >= _LEAST_TICKS:
            return ticks
    return _linear_ticks(low, high)
