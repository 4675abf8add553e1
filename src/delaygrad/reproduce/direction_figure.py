"""The figure of the sufficient direction constant, like that of the Features Replay paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from delaygrad.reproduce.direction import direction_curves
from delaygrad.reproduce.tally import RunResult

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072B2", "#009E73", "#D55E00", "#000000", "#CC79A7", "#56B4E9", "#E69F00", "#999999")


def draw_direction(results: Sequence[RunResult], title: str, path: Path) -> None:
    """Draw the constant of each stage against epochs, a panel for each run.

    Args:
        results: of runs with probes.
        title: above the figure.
        path: of the figure.
    """
    from matplotlib.figure import Figure

    panels = max(1, len(results))
    figure = Figure(figsize=(max(8.0, 5.5 * panels), 4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, result in zip(figure.subplots(1, panels, squeeze=False)[0], results, strict=False):
        stages = direction_curves(result)
        for k, curve in enumerate(stages):
            axes.plot(
                curve.epochs,
                curve.constants,
                label=f"stage {k} (delay {curve.delay})",
                color=_COLOURS[k % len(_COLOURS)],
                linewidth=1.2,
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=result.name, xlabel="epoch", ylabel="sufficient direction constant")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        if stages:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
