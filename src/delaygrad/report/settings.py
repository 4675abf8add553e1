"""Configuration and environment: what the runs have in common, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from delaygrad.report.page import Block, Cell, Column, Facts, Row, Section, Table
from delaygrad.report.quantities import MISSING
from delaygrad.report.run_group import RunGroup

_PLACES = ("run_dir", "data_dir")  # of the machine that trained, of no use elsewhere


def configuration_section(
    groups: Sequence[RunGroup], heading: str = "Configuration"
) -> Section | None:
    """Show the settings under the names that config.json and the command line give them."""
    return _section(
        groups,
        {run.name: _without_places(run.config) for group in groups for run in group.runs},
        heading,
    )


def environment_section(groups: Sequence[RunGroup], heading: str = "Environment") -> Section | None:
    """Show versions, processor and commit."""
    found = {run.name: run.environment for group in groups for run in group.runs}
    return _section(groups, found, heading)


def compare(settings: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Split settings into what is the same everywhere and the names of what is not.

    Args:
        settings: by the name of their owner.

    Example:
        >>> compare({"a": {"lr": 0.1, "seed": 0}, "b": {"lr": 0.1, "seed": 1}})
        ({'lr': 0.1}, ['seed'])
    """
    names = dict.fromkeys(name for values in settings.values() for name in values)
    first = next(iter(settings.values()), {})
    same = [
        name
        for name in names
        if all(name in values and values[name] == first.get(name) for values in settings.values())
    ]
    return {name: first[name] for name in same}, [name for name in names if name not in same]


def setting_text(value: Any) -> str:
    """Write a setting.

    Example:
        >>> [setting_text(value) for value in (None, True, ["a", "b"], 0.0005, 600.0)]
        ['none', 'yes', 'a, b', '0.0005', '600']
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(setting_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _PLACES}


def _section(
    groups: Sequence[RunGroup], settings: dict[str, dict[str, Any]], heading: str
) -> Section | None:
    same, differing = compare(settings)
    blocks: list[Block] = []
    if differing:
        blocks.append(_differences(groups, settings, differing))
    if same:
        caption = "The same in all runs" if len(settings) > 1 else "Of the run"
        values = {name: setting_text(value) for name, value in same.items()}
        blocks.append(Facts(caption=caption, values=values))
    return Section(heading, tuple(blocks)) if blocks else None


def _differences(
    groups: Sequence[RunGroup], settings: dict[str, dict[str, Any]], names: list[str]
) -> Table:
    rows: list[Row] = []
    for group in groups:
        for run in group.runs:
            values = settings[run.name]
            cells = [setting_text(values[n]) if n in values else MISSING for n in names]
            rows.append((Cell(run.name, series=group.series), *cells))
    return Table(
        caption="What differs",
        columns=(Column("run"), *(Column(name) for name in names)),
        rows=tuple(rows),
        note=f"{MISSING}: not recorded, the run's version does not have it."
        if any(MISSING in row for row in rows)
        else "",
    )
