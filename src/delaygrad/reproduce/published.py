"""Numbers that somebody has published, each with where it was read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published number.

    Attributes:
        quantity: what it is; accuracies in percent, of the test set.
        value: the number.
        stages: K.
        mark: read in the source, or recalled from memory of it; a recalled number is to be checked
            before anybody calls it the paper's.
        source: where it was read, or how it is known.
        who: measured it.
        method: by its name on the command line.
        problem: by its name in the target; "" where the target has only one.
        recipe: likewise; "" where it is not among the target's recipes, or not known.
    """

    quantity: Literal["best_accuracy", "accuracy", "epoch_s", "speedup"]
    value: float
    stages: int
    mark: Literal["read", "recalled"]
    source: str
    who: str
    method: str = "ddg"
    problem: str = ""
    recipe: str = ""


class Sources:
    """Number the sources in the order in which they are quoted.

    Example:
        >>> sources = Sources()
        >>> number = Published(quantity="speedup", value=1.4, stages=2, mark="read",
        ...     source="figure 3", who="the paper")
        >>> sources.quote(number)
        '1.4 [1]'
        >>> sources.notes()
        ['[1] the paper: figure 3 (read)']
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def quote(self, number: Published) -> str:
        """Give the number with its source's, and with a mark if it is recalled."""
        note = f"{number.who}: {number.source} ({number.mark})"
        index = self._known.setdefault(note, len(self._known) + 1)
        return f"{number.value:g} [{index}{', recalled' if number.mark == 'recalled' else ''}]"

    def notes(self) -> list[str]:
        """List the sources."""
        return [f"[{index}] {note}" for note, index in self._known.items()]


def plain(numbers: Iterable[Published]) -> list[dict[str, Any]]:
    """Return them as ``results.json`` keeps them."""
    return [vars(number).copy() for number in numbers]
