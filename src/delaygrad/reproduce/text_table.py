"""Tables of texts, for a Markdown file and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Attributes:
        title: "" if it needs none.
        headings: one for each column.
        rows: as many texts each.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Write it as Markdown.

        Example:
            >>> print(TextTable("", ["a", "b"], [["1", "2"]]).markdown())
            | a | b |
            |---|---|
            | 1 | 2 |
        """
        lines = [f"| {' | '.join(cells)} |" for cells in (self.headings, *self.rows)]
        table = "\n".join([lines[0], "|---" * len(self.headings) + "|", *lines[1:]])
        return f"**{self.title}**\n\n{table}" if self.title else table


@dataclass(frozen=True)
class TableSheet:
    """The tables of a target.

    Attributes:
        tables: in order.
        notes: paragraphs below them: what the numbers are, and the sources of the published ones.
    """

    tables: Sequence[TextTable]
    notes: Sequence[str]

    def markdown(self) -> str:
        """Write them as Markdown."""
        return "\n\n".join([*(table.markdown() for table in self.tables), *self.notes]) + "\n"
