"""The dial M of a comparison: what micro-batches do to the training loss and to the speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from delaygrad.records.spread import Spread, spread_json
from delaygrad.results.figure import Panel
from delaygrad.results.lines import Line, line_panel


@dataclass(frozen=True, kw_only=True)
class DialPoint:
    """A method with M micro-batches.

    Attributes:
        name: of the method, its K and its options, but for M.
        micro_batches: M.
        loss: final training loss; None: no run has finished.
        sample_s: seconds per sample; None: not known.
    """

    name: str
    micro_batches: int
    loss: Spread | None
    sample_s: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "loss": spread_json(self.loss)}


def dial_panels(
    points: Sequence[DialPoint], base: float | None, rivals: Mapping[str, Mapping[int, float]]
) -> tuple[Panel, ...]:
    """Draw loss and samples per second against M; nothing where no method has two M.

    Args:
        points: of all methods.
        base: final training loss of the best backpropagation; None: not known.
        rivals: seconds per sample by M, by the name of a synchronous schedule.
    """
    by_name: dict[str, list[DialPoint]] = {}
    for point in sorted(points, key=lambda point: point.micro_batches):
        by_name.setdefault(point.name, []).append(point)
    if all(len(own) < 2 for own in by_name.values()):
        return ()
    losses, speeds = list[Line](), list[Line]()
    for number, (name, own) in enumerate(by_name.items(), start=1):
        known = [(point.micro_batches, point.loss) for point in own if point.loss is not None]
        if base is not None and known:
            percent = [100 * (loss.mean / base - 1) for _, loss in known]
            spreads = [100 * (loss.sd or 0.0) / base for _, loss in known]
            losses.append(
                Line(
                    label=name, x=[m for m, _ in known], y=percent, series=number,
                    low=[y - sd for y, sd in zip(percent, spreads, strict=True)],
                    high=[y + sd for y, sd in zip(percent, spreads, strict=True)],
                )
            )  # fmt: skip
        speeds.append(_speed(name, number, {p.micro_batches: p.sample_s for p in own}))
    for number, (name, by_m) in enumerate(rivals.items(), start=len(by_name) + 1):
        speeds.append(_speed(name, number, by_m))
    panels = (
        line_panel(losses, "final training loss over BP's (%)", "micro-batches M", levels=(0.0,)),
        line_panel(speeds, "samples per second on K devices", "micro-batches M"),
    )
    return panels if losses else panels[1:]


def _speed(name: str, number: int, sample_s: Mapping[int, float | None]) -> Line:
    known = {m: 1 / seconds for m, seconds in sorted(sample_s.items()) if seconds}
    return Line(label=name, x=list(known), y=list(known.values()), series=number)
