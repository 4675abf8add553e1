"""What a target leaves at a scale: ``results.json``, ``table.md`` and figures."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delaygrad.reproduce.curves_figure import draw_curves
from delaygrad.reproduce.direction import direction_rows
from delaygrad.reproduce.direction_figure import draw_direction
from delaygrad.reproduce.measured_tables import memory_tables, speed_tables
from delaygrad.reproduce.memory_figure import draw_memory
from delaygrad.reproduce.memory_target import MemoryTarget
from delaygrad.reproduce.plan import PlannedRun
from delaygrad.reproduce.published import plain
from delaygrad.reproduce.speed_figure import draw_speed
from delaygrad.reproduce.speed_target import SpeedTarget
from delaygrad.reproduce.speed_up import speed_ups
from delaygrad.reproduce.tally import RunResult, results_of, tally
from delaygrad.reproduce.target import Target
from delaygrad.reproduce.text_table import TableSheet
from delaygrad.reproduce.training_table import training_tables
from delaygrad.reproduce.training_target import TrainingTarget
from delaygrad.training import run_folder

_ENVIRONMENT = (
    "delaygrad", "torch", "python", "system", "processor", "cpu_count", "accelerator", "commit",
)  # fmt: skip
RESULTS, TABLE = "results.json", "table.md"


def training_outcome(
    target: Target,
    scale: str,
    runs: Sequence[PlannedRun],
    folder: Path,
    speed_rows: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Put the runs that have a result together, in a table and figures.

    Args:
        target: of kind training.
        scale: by name.
        runs: all that are planned.
        folder: of the run folders; gets the files.
        speed_rows: what a target of kind speed has measured, if one has, for the axis of time.

    Returns:
        What ``results.json`` holds.
    """
    content = target.content
    assert isinstance(content, TrainingTarget)
    done = results_of(runs)
    direction = direction_rows(done)
    results = {
        **_heading(target, scale),
        "environments": _environments(runs, done),
        "rows": tally(runs, done),
        "runs": [result.to_json() for result in done],
        **({"direction": direction} if direction else {}),
    }
    _write(folder, results, training_tables(results, content))
    title = _title(target, scale)
    if content.figure == "direction":
        probed = [result for result in done if result.name in {row["run"] for row in direction}]
        draw_direction(probed, title, folder / "direction.png")
        return results
    for problem in dict.fromkeys(run.series.problem for run in runs):
        own = [run for run in runs if run.series.problem == problem]
        recipes = dict.fromkeys(run.series.recipe for run in own)
        suffix, words = (f"-{problem}", content.problems[problem].title) if problem else ("", "")
        draw_curves(
            [result for result in done if result.series.problem == problem],
            [(recipe, content.recipes[recipe].title) for recipe in recipes],
            f"{words} — {title}" if words else title,
            folder / f"curves{suffix}.png",
            speed_ups(speed_rows, own[0].config.model),
        )
    return results


def speed_outcome(
    target: Target, scale: str, rows: Sequence[dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """Put what was measured in a table and a figure; as ``training_outcome``."""
    content = target.content
    assert isinstance(content, SpeedTarget)
    results = {**_heading(target, scale), "rows": list(rows)}
    _write(folder, results, speed_tables(rows, content.published))
    draw_speed(rows, content.published, _title(target, scale), folder / "speed.png")
    return results


def memory_outcome(
    target: Target, scale: str, rows: Sequence[dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """Put what was measured in a table and a figure; as ``training_outcome``."""
    content = target.content
    assert isinstance(content, MemoryTarget)
    results = {**_heading(target, scale), "rows": list(rows)}
    _write(folder, results, memory_tables(rows))
    draw_memory(rows, _title(target, scale), folder / "memory.png")
    return results


def _title(target: Target, scale: str) -> str:
    about = textwrap.fill(f"{scale}: {target.content.scales[scale].about}", 100)
    return f"{target.content.title}\n{about}"


def _heading(target: Target, scale: str) -> dict[str, Any]:
    content = target.content
    return {
        "command": f"delaygrad reproduce {target.paper} --target {target.name} --scale {scale}",
        "paper": target.paper,
        "target": target.name,
        "title": content.title,
        "reference": content.reference,
        "scale": scale,
        "about": content.scales[scale].about,
        "published": plain(content.published),
    }


def nameless(environment: dict[str, Any]) -> dict[str, Any]:
    """Keep of an environment what the arithmetic and the time depend on, and no names."""
    return {name: environment[name] for name in _ENVIRONMENT if name in environment}


def _environments(runs: Sequence[PlannedRun], done: Sequence[RunResult]) -> list[dict[str, Any]]:
    """List the different environments that the runs were made in."""
    names = {result.name for result in done}
    found: list[dict[str, Any]] = []
    for run in runs:
        if run.name in names:
            text = (run.run_dir / run_folder.CONFIG).read_text(encoding="utf-8")
            environment = nameless(json.loads(text).get("environment", {}))
            if environment not in found:
                found.append(environment)
    return found


def _write(folder: Path, results: dict[str, Any], sheet: TableSheet) -> None:
    with run_folder.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(folder / RESULTS, results)
        (folder / TABLE).write_text(
            f"# {results['title']}\n\n{results['reference']}\n\nScale `{results['scale']}`: "
            f"{results['about']}\n\n    {results['command']}\n\n{sheet.markdown()}",
            encoding="utf-8",
        )
