"""Which numbers settings may be."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

# Beyond the upper limits nothing useful happens, and torch, threads or clocks may fail.
Few = Annotated[int, Meta(ge=1, le=1024)]
Size = Annotated[int, Meta(ge=1, le=2**20)]
Count = Annotated[int, Meta(ge=1, le=10**12)]
CountOrNone = Annotated[int, Meta(ge=0, le=10**12)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]
NotNegative = Annotated[float, Meta(ge=0, le=1e30)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
