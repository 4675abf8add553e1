"""Draw a schedule as text."""

from __future__ import annotations

from collections.abc import Iterable

from delaygrad.schedule.action import Action, Kind


def render(iterations: Iterable[Iterable[Action]], num_stages: int) -> str:
    """Draw actions as a grid, a row per stage and a column per iteration; updates are left out.

    Args:
        iterations: the actions of each iteration.
        num_stages: K, the number of rows.

    Example:
        >>> from delaygrad.schedule import LOCKED
        >>> print(render([LOCKED.actions(t, 3) for t in range(4)], 3))
        iteration  0      1      2      3
        stage 0    F0     F1     F2 B0  F3 B1
        stage 1    F0     F1 B0  F2 B1  F3 B2
        stage 2    F0 B0  F1 B1  F2 B2  F3 B3
    """
    columns = [
        [
            " ".join(
                f"{action.kind}{action.batch_index}"
                for action in actions
                if action.stage_index == stage and action.kind is not Kind.UPDATE
            )
            for stage in range(num_stages)
        ]
        for actions in map(list, iterations)
    ]
    table = [["iteration", *(f"stage {stage}" for stage in range(num_stages))]]
    table += [[str(index), *cells] for index, cells in enumerate(columns)]
    widths = [max(map(len, column)) for column in table]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*table, strict=True)
    )
    return "\n".join(lines)
