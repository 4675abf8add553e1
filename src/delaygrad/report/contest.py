"""The figure of a contest: throughput of everyone, as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = {
    "bp": "#999999",
    "ceiling": "#000000",
    "pipeline": "#E69F00",
    "ddp": "#56B4E9",
    "ddg": "#009E73",
}


def draw_contest(results: dict[str, Any], path: Path) -> None:
    """Draw each contestant's throughput as a multiple of the baseline's, with quartiles.

    Without the baseline in the contest, iterations per second.

    Args:
        results: what ``delaygrad.bench.run_contest`` returned.
        path: of the figure, PNG.
    """
    # Imported here: worker processes import this package and draw nothing.
    from matplotlib.figure import Figure

    ran = [c for c in results["contestants"] if "iteration" in c]
    baseline = results["compared_with"]["baseline"]
    bars = [_bar(contestant, baseline) for contestant in ran]
    figure = Figure(figsize=(9, 1.6 + 0.28 * max(1, len(ran))), layout="constrained")
    axes = figure.subplots()
    for row, (contestant, (middle, low, high)) in enumerate(zip(ran, bars, strict=True)):
        axes.barh(
            row,
            middle,
            xerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]],
            color=_COLOURS[contestant["family"]],
            error_kw={"linewidth": 1, "capsize": 2},
        )
        axes.annotate(
            f"{middle:.2f}", (max(middle, high), row), (4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(ran)), [contestant["title"] for contestant in ran], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    title = next((c["title"] for c in ran if c["name"] == baseline), None)
    unit = "iterations per second" if title is None else f"throughput / that of {title}"
    axes.set_xlabel(f"{unit} (median and quartiles of {results['rounds']} rounds)")
    if title is not None:
        axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_title(
        f"{results['description']}\nstages: {results['num_stages']}, link: {results['link']}",
        fontsize=9,
    )
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


def _bar(contestant: dict[str, Any], baseline: str | None) -> tuple[float, float, float]:
    if baseline is not None:
        ratio = contestant["throughput_against"]["baseline"]
        return ratio["median"], *ratio["quartiles"]
    slow_to_fast = contestant["iteration"]["quartiles"][::-1]
    return 1 / contestant["iteration"]["median"], *(1 / seconds for seconds in slow_to_fast)
