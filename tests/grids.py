"""Grids of test cases: a covering array for every run, the rest for ``-m full``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def grid(*axes: Iterable[Any], also: Iterable[tuple[Any, ...]] = ()) -> list[Any]:
    """Return all combinations as parameters; those that add no pair of values are marked ``full``.

    Args:
        also: combinations that every run tries as well, such as those that once failed.

    Example:
        >>> cases = grid("ab", "cd", "ef")
        >>> ["".join(case.values) for case in cases if not case.marks]
        ['ace', 'adf', 'bcf', 'bde']
    """
    values = [list(axis) for axis in axes]
    rows = list(itertools.product(*(range(len(axis)) for axis in values)))
    missing = set().union(*map(_pairs, rows))
    chosen = set()
    while missing:
        best = max(rows, key=lambda row: len(_pairs(row) & missing))
        chosen.add(best)
        missing -= _pairs(best)
    also = list(also)
    cases = [(row, tuple(axis[i] for axis, i in zip(values, row, strict=True))) for row in rows]
    return [
        pytest.param(*case, marks=() if row in chosen or case in also else pytest.mark.full)
        for row, case in cases
    ]


def _pairs(row: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    return set(itertools.combinations(enumerate(row), 2))
