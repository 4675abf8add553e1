"""What several measurements show together, and the texts of tables.

Runs with several seeds: mean and sample standard deviation. Times, which have outliers: median and
quartiles.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What several runs measured.

    Attributes:
        mean: of the finite values.
        sd: their sample standard deviation (divisor n - 1); None for a single value.
        n: how many values.
    """

    mean: float
    sd: float | None
    n: int


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of the finite values; None if there are none.

    Example:
        >>> spread_of([1.0, None, 3.0, float("nan")])
        Spread(mean=2.0, sd=1.4142135623730951, n=2)
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None
    sd = statistics.stdev(finite) if len(finite) > 1 else None
    return Spread(mean=statistics.fmean(finite), sd=sd, n=len(finite))


def quartiles(values: Sequence[float], digits: int) -> dict[str, Any]:
    """Return median and quartiles, as records hold them.

    Example:
        >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0], digits=1)
        {'median': 3.0, 'quartiles': [2.0, 4.0]}
    """
    low, middle, high = (float(q) for q in np.quantile(np.asarray(values), [0.25, 0.5, 0.75]))
    return {
        "median": round(middle, digits),
        "quartiles": [round(low, digits), round(high, digits)],
    }


def quartiles_text(spread: Mapping[str, Any]) -> str:
    """Write median and quartiles.

    Example:
        >>> quartiles_text({"median": 1.5, "quartiles": [1.25, 2.0]})
        '1.50 (1.25 to 2.00)'
    """
    low, high = spread["quartiles"]
    return f"{spread['median']:.2f} ({low:.2f} to {high:.2f})"


def spread_json(spread: Spread | None) -> dict[str, Any] | None:
    """Return mean, sd and n; None stays None."""
    return None if spread is None else dict(vars(spread))


def spread_text(
    spread: Spread | None, decimals: int, scale: float = 1.0, *, sign: bool = False
) -> str:
    """Write mean and standard deviation.

    Example:
        >>> spread_text(spread_of([0.5, 0.52]), 1, scale=100)
        '51.0 ± 1.4'
        >>> spread_text(spread_of([-0.5]), 2, sign=True), spread_text(None, 2)
        ('−0.50', '–')
    """
    if spread is None:
        return MISSING
    mean = scale * spread.mean
    text = signed(mean, decimals) if sign else f"{mean:,.{decimals}f}"
    return text if spread.sd is None else f"{text} ± {scale * spread.sd:,.{decimals}f}"


def signed(value: float, decimals: int) -> str:
    """Write a difference with its sign; zero has none.

    Example:
        >>> signed(-0.254, 2), signed(0.3, 1), signed(-0.001, 2)
        ('−0.25', '+0.3', '0.00')
    """
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def number_text(value: float | None, decimals: int, scale: float = 1.0) -> str:
    """Write a number that may be missing.

    Example:
        >>> number_text(0.1234, 1, 100), number_text(None, 1)
        ('12.3', '–')
    """
    return MISSING if value is None else f"{scale * value:,.{decimals}f}"


def time_unit(longest_s: float) -> tuple[float, str]:
    """Choose a unit for times up to ``longest_s`` seconds: its length in seconds, its name.

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
