"""Numbers as a reader wants them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation of what several runs measured.

    Attributes:
        values: at least one.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """The standard deviation of the sample (n - 1); None of one value alone."""
        if len(self.values) < 2 or not all(map(math.isfinite, self.values)):
            return None
        return statistics.stdev(self.values)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what is not finite is None, for JSON has no word for it."""
        mean, *values = (v if math.isfinite(v) else None for v in (self.mean, *self.values))
        return {"mean": mean, "std": self.std, "values": values}


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of the values that there are, None if there are none.

    Example:
        >>> spread_of([1.0, None, 3.0])
        Spread(values=(1.0, 3.0))
    """
    known = tuple(value for value in values if value is not None)
    return Spread(values=known) if known else None


def spread_text(spread: Spread | None, decimals: int, scale: float = 1.0) -> str:
    """Write mean and standard deviation.

    Example:
        >>> spread_text(Spread(values=(0.5, 0.52)), 1, scale=100)
        '51.0 ± 1.4'
        >>> spread_text(Spread(values=(0.5,)), 2)
        '0.50'
    """
    if spread is None:
        return MISSING
    text = f"{scale * spread.mean:,.{decimals}f}"
    return text if spread.std is None else f"{text} ± {scale * spread.std:,.{decimals}f}"


def number_text(value: float | None, decimals: int, scale: float = 1.0) -> str:
    """Write a number that may be missing.

    Example:
        >>> number_text(0.1234, 1, 100), number_text(None, 1)
        ('12.3', '–')
    """
    return MISSING if value is None else f"{scale * value:,.{decimals}f}"


def signed(value: float, decimals: int) -> str:
    """Write a difference with its sign; what rounds to zero has none.

    Example:
        >>> signed(-0.254, 2), signed(0.3, 1), signed(-0.001, 2)
        ('−0.25', '+0.3', '0.00')
    """
    text = f"{value:+.{decimals}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", "\N{MINUS SIGN}")


def time_unit(longest_s: float) -> tuple[float, str]:
    """Choose a unit for times up to so many seconds: its length in seconds, its name.

    Example:
        >>> time_unit(90.0), time_unit(9000.0)
        ((1.0, 's'), (60.0, 'min'))
    """
    if longest_s <= 180:
        return 1.0, "s"
    return (60.0, "min") if longest_s <= 180 * 60 else (3600.0, "h")


def plural(count: int, noun: str) -> str:
    """Count things.

    Example:
        >>> plural(1, "run"), plural(2, "run")
        ('1 run', '2 runs')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
