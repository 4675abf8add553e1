"""Copy what a target has left beside the target: records without weights, paths and hosts."""

from __future__ import annotations

import json
import shutil
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delaygrad.errors import ConfigError
from delaygrad.reproduce import run_state
from delaygrad.reproduce.measured_case import FOLDER as MEASURED
from delaygrad.reproduce.outcome import RESULTS, TABLE, nameless
from delaygrad.reproduce.plan import PlannedRun
from delaygrad.reproduce.target import Target
from delaygrad.training import TrainConfig, run_folder

RECORDS = "records"

_FIGURES = ("curves", "timeline")  # paths in a summary


def publish(target: Target, scale: str, folder: Path, runs: Sequence[PlannedRun]) -> Path:
    """Copy the table, the figures, and the records of the runs that have a result.

    Every published run is a run folder (without checkpoints and weights): ``config.json`` with
    relative paths, ``summary.json`` (none if the run diverged) and ``records.jsonl``.

    Args:
        target: whose folder gets ``records/<scale>``; what was there before is replaced.
        scale: by name.
        folder: what ``training_outcome`` and the like have written to.
        runs: [] for targets that do not train.

    Returns:
        The folder.

    Raises:
        ConfigError: there is nothing to publish, or no room.
    """
    if not (folder / RESULTS).exists():
        raise ConfigError(f"there is nothing to publish ({folder}); run it first")
    goal = target.folder / RECORDS / scale
    draft = goal.with_name(f"{scale}.unfinished")
    with run_folder.writing(goal):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for path in [folder / RESULTS, folder / TABLE, *sorted(folder.glob("*.png"))]:
            shutil.copyfile(path, draft / path.name)
        for path in sorted((folder / MEASURED).glob("*.json")):
            _publish_measurement(path, draft / MEASURED / path.name)
        shown = f"experiments/{target.label}/{RECORDS}/{scale}"
        for run in runs:
            if run_state.state_of(run.run_dir) in ("finished", "diverged"):
                _publish_run(run.run_dir, draft / run.name, f"{shown}/{run.name}")
        shutil.rmtree(goal, ignore_errors=True)
        draft.rename(goal)
    return goal


def _publish_measurement(path: Path, goal: Path) -> None:
    goal.parent.mkdir(exist_ok=True)
    found = _read(path)
    if "contest" in found:
        found["contest"].pop("variables", None)  # of the environment: some are paths
    run_folder.write_json(goal, {**found, "environment": nameless(found.get("environment", {}))})


def _publish_run(run_dir: Path, goal: Path, shown: str) -> None:
    goal.mkdir()
    found = _read(run_dir / run_folder.CONFIG)
    run_folder.write_json(
        goal / run_folder.CONFIG,
        {
            "config": _without_paths(found["config"], shown),
            "environment": nameless(found.get("environment", {})),
        },
    )
    if (run_dir / run_folder.SUMMARY).exists():
        summary = _read(run_dir / run_folder.SUMMARY)
        summary = {name: value for name, value in summary.items() if name not in _FIGURES}
        run_folder.write_json(goal / run_folder.SUMMARY, {**summary, "run_dir": shown})
    shutil.copyfile(run_dir / run_folder.RECORDS, goal / run_folder.RECORDS)


def _without_paths(config: dict[str, Any], run_dir: str) -> dict[str, Any]:
    """Replace the settings that are paths by relative ones."""
    kinds = typing.get_type_hints(TrainConfig)
    paths = [name for name in config if kinds.get(name) == Path | None and config[name] is not None]
    hidden = {name: f"data/{config['data']}" for name in paths if name == "data_dir"}
    others = {name: Path(config[name]).name for name in paths}
    return {**config, **others, **hidden, "run_dir": run_dir}


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
