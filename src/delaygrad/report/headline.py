"""The result in a sentence or a few, for the top of the page."""

from __future__ import annotations

from collections.abc import Sequence

from delaygrad.report.quantities import signed, spread_text
from delaygrad.report.run_group import RunGroup

_MOST_TOLD = 6  # groups, one by one


def headline(groups: Sequence[RunGroup]) -> str:
    """Say how accurate the groups became, against backpropagation where that was run too."""
    told = [group for group in groups if group.final_test is not None]
    sentences = ["No run has finished: there is no final accuracy."]
    if len(told) > _MOST_TOLD:
        sentences = [_range(told)]
    elif told:
        sentences = [_sentence(group, told) for group in told if group.baseline_in(told) is None]
    return " ".join(sentences + [text for group in groups if (text := _diverged(group))])


def _sentence(first: RunGroup, groups: Sequence[RunGroup]) -> str:
    """Tell of a group, and of those that it is the baseline of."""
    parts = [f"{first.label} ends at {_percent(first)} test accuracy"]
    for group in groups:
        gap = group.minus_baseline_in(groups)
        if gap is not None and group.baseline_in(groups) is first:
            points = "" if len(parts) > 1 else " points"
            parts.append(f"{group.label} at {_percent(group)} ({signed(100 * gap, 2)}{points})")
    return f"{', '.join(parts)}."


def _range(groups: Sequence[RunGroup]) -> str:
    compared = [(group.minus_baseline_in(groups), group) for group in groups]
    gaps = [(gap, group) for gap, group in compared if gap is not None]
    if len(gaps) < 2:
        worst, best = min(groups, key=_mean), max(groups, key=_mean)
        return (
            f"Test accuracy ends between {_percent(worst)} ({worst.label}) and {_percent(best)} "
            f"({best.label})."
        )
    ends = min(gaps, key=_gap), max(gaps, key=_gap)
    low, high = (f"{signed(100 * gap, 2)} points ({group.label})" for gap, group in ends)
    return (
        f"Against backpropagation with the same recipe, the test accuracy of {len(gaps)} groups "
        f"ends between {low} and {high}."
    )


def _diverged(group: RunGroup) -> str:
    count, runs = sum(run.state == "diverged" for run in group.runs), len(group.runs)
    if count == 0:
        return ""
    return (
        f"{count} of {runs} runs of {group.label} diverged."
        if runs > 1
        else (f"{group.label} diverged.")
    )


def _percent(group: RunGroup) -> str:
    return f"{spread_text(group.final_test, 2, 100)} %"


def _mean(group: RunGroup) -> float:
    assert group.final_test is not None
    return group.final_test.mean


def _gap(item: tuple[float, RunGroup]) -> float:
    return item[0]
