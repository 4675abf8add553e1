"""A target: a folder of experiments that says, as data, how to reproduce a figure or a table.

    experiments/<paper>-<target>/target.toml     what to run, at which scales; what was published
                                 README.md       what came out, and what it means
                                 records/        our records, tables and figures

Each kind of target is a class in a file of its own: it plans, makes, tabulates and draws. Another
paper needs such folders only; no code names a paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from delaygrad.errors import ConfigError
from delaygrad.results.figure import Panel
from delaygrad.results.page import Cell, Column, Section, Table

FILE = "target.toml"
ScaleName: TypeAlias = Literal["smoke", "cpu", "gpu"]
Say: TypeAlias = Callable[[str], None]
Figures: TypeAlias = Mapping[str, Mapping[str, Sequence[Panel]]]
"""Rows of panels by their title, by the figure's file name without suffix."""
Row: TypeAlias = Mapping[str, Any]

_ENVIRONMENT = (
    "delaygrad", "torch", "python", "system", "processor", "cpu_count", "accelerator", "commit",
)  # fmt: skip


def nameless(environment: Row) -> dict[str, Any]:
    """Keep of an environment what arithmetic and time depend on, and no names."""
    return {name: environment[name] for name in _ENVIRONMENT if name in environment}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published number.

    Attributes:
        quantity: what it is; accuracies in percent, of the test set.
        value: the number.
        stages: K.
        mark: read in the source, or recalled from memory; check a recalled number before it is
            called the paper's.
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
        >>> sources.quote([number]), sources.notes()
        ('1.4 [1]', ['[1] the paper: figure 3 (read)'])
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def quote(self, numbers: Sequence[Published]) -> str:
        """Write numbers with those of their sources; a recalled number is marked."""
        return "; ".join(map(self._quote, numbers)) or "–"

    def _quote(self, number: Published) -> str:
        note = f"{number.who}: {number.source} ({number.mark})"
        index = self._known.setdefault(note, len(self._known) + 1)
        return f"{number.value:g} [{index}{', recalled' if number.mark == 'recalled' else ''}]"

    def notes(self) -> list[str]:
        """List the sources."""
        return [f"[{index}] {note}" for note, index in self._known.items()]


def require_same(what: str, place: Path, there: Row, here: Row) -> None:
    """Raise ConfigError if what is kept in a place has other settings; say which."""
    differing = [
        f"{name}: {there.get(name)} there, {here.get(name)} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise ConfigError(
            f"there is a {what} with other settings in this place ({place}; "
            f"{'; '.join(differing)}); move it away, or choose another --output"
        )


class Planned(Protocol):
    """Something to be made, a run or a measurement; names differ within a target and scale."""

    @property
    def name(self) -> str: ...

    def is_done(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment is: what differs from the paper and how long it takes, in words."""

    about: str


@dataclass(frozen=True)
class Failure:
    """Something planned that ended without a result: its name, and why."""

    name: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a target has found.

    Attributes:
        results: what results.json holds after its header: ``rows``, and more of some kinds.
        tables: of these.
        notes: paragraphs that explain the tables.
        figures: drawn from the same.
        sections: of the page, in place of tables and figures; () for these.
        summary: the result in a sentence; "" for none.
    """

    results: dict[str, Any]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    figures: Figures
    sections: tuple[Section, ...] = ()
    summary: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is no result yet."""
        rows = self.results["rows"]
        return not any(row.get("done", "does_not_run" not in row) for row in rows)


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """What every ``target.toml`` says, and what every kind of target does.

    Attributes:
        title: what the figure or table shows.
        kind: training: runs; speed: contests of throughput; memory: peaks.
        reference: the paper, and which figure or table of it.
        scales: how large the experiment is, by name.
        published: numbers to compare with.
        summary: what was found, in words, written after the runs; for the page of the paper.
        folder: of the target; not a key of the file, as the next one.
        paper: the first part of the folder's name.
    """

    title: str
    kind: Literal["training", "speed", "memory"]
    reference: str
    scales: Mapping[str, Scale]
    published: tuple[Published, ...] = ()
    summary: str = ""
    folder: Path = Path()
    paper: str = ""

    @property
    def label(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def name(self) -> str:
        """The folder's name without the paper's."""
        return self.label.removeprefix(f"{self.paper}-")

    def command(self, scale: str) -> str:
        """The command that makes it."""
        return f"delaygrad reproduce {self.paper} --target {self.name} --scale {scale}"

    def heading(self, scale: str) -> str:
        """The title; that of a smoke run says so, since even its data may differ."""
        return f"{self.title} (smoke)" if scale == "smoke" else self.title

    def check(self) -> None:
        """Plan all scales; a ConfigError says what is wrong, makes nothing, or the same twice."""
        for scale in self.scales:
            names = [one.name for one in self.plan(scale, self.folder, None)]
            place = f"{self.label}/{FILE}: scales.{scale}"
            if not names:
                raise ConfigError(f"{place} makes nothing; give it lines, and seeds to train with")
            for name in names:
                if names.count(name) > 1:
                    raise ConfigError(f"{place} makes the same twice ({name}); leave one out")

    @abstractmethod
    def plan(self, scale: str, folder: Path, data_dir: Path | None) -> Sequence[Any]:
        """List what is to be made at a scale (``Planned``), with results in a folder.

        ``data_dir`` holds the data, or a folder for each data set.
        """

    @classmethod
    @abstractmethod
    def make(cls, planned: Sequence[Any], workers: int | None, say: Say | None) -> list[Failure]:
        """Make what is missing, of all targets of this kind.

        ``workers``: runs at a time; None: as many as CPU cores, or GPUs. ``say`` tells the user
        what happens; None: quiet.
        """

    @abstractmethod
    def findings(self, planned: Sequence[Any], speed_rows: Sequence[Row] = ()) -> Findings:
        """Put together what is there.

        ``speed_rows`` are of the paper's targets of kind speed, for axes of time.
        """


def text_table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], missing: str = "–"
) -> Table:
    """Make a table of texts; cells that begin with a digit or a sign are numbers."""
    columns = []
    for index, heading in enumerate(headings):
        cells = [row[index] for row in rows if row[index] != missing]
        number = bool(cells) and all(cell[:1] in "+−0123456789" for cell in cells)
        columns.append(Column(heading, number=number))
    return Table(caption=caption, columns=tuple(columns), rows=tuple(map(tuple, rows)))


def markdown(table: Table) -> str:
    """Write a table as Markdown.

    Example:
        >>> print(markdown(text_table("", ["a", "b"], [["1", "2"]])))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    columns = len(table.columns)
    lines = [[column.heading for column in table.columns]]
    for row in table.rows:
        cells = [_text(cell) for cell in row]
        lines.append(cells if len(cells) == columns else [f"**{cells[0]}**"] + [""] * (columns - 1))
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    rows.insert(1, "|---" * columns + "|")
    parts = [f"**{table.caption}**" if table.caption else "", "\n".join(rows), table.note]
    return "\n\n".join(filter(None, parts))


def _text(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text
