"""Copy a target's results beside the target: records without weights, paths and host names."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delaygrad.records import parse_json
from delaygrad.reproduce.measured import FOLDER as MEASURED
from delaygrad.reproduce.target import Planned, Target, nameless
from delaygrad.training import run_folder

_FIGURES = ("curves", "timeline")  # paths in a summary


def publish(target: Target, scale: str, folder: Path, planned: Sequence[Planned]) -> Path:
    """Copy tables, figures, measurements, and the records of the runs that have a result.

    They replace the folder ``records/<scale>`` of the target, which is returned. A published run is
    a run folder without checkpoints and weights: ``config.json`` with relative paths,
    ``summary.json`` (none if the run diverged) and ``records.jsonl``.
    """
    goal = target.folder / "records" / scale
    draft = goal.with_name(f"{scale}.unfinished")
    with run_folder.writing(goal):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for path in sorted(folder.glob("*.*")):
            if path.suffix in (".json", ".md", ".png") and path.is_file():
                shutil.copyfile(path, draft / path.name)
        for path in sorted((folder / MEASURED).glob("*.json")):
            (draft / MEASURED).mkdir(exist_ok=True)
            _publish_measurement(path, draft / MEASURED / path.name)
        shown = f"experiments/{target.label}/records/{scale}"
        for one in planned:
            if (run_dir := folder / one.name).is_dir() and one.is_done():
                _publish_run(run_dir, draft / one.name, f"{shown}/{one.name}")
        shutil.rmtree(goal, ignore_errors=True)
        draft.rename(goal)
    return goal


def _publish_measurement(path: Path, goal: Path) -> None:
    found = _read(path)
    if "contest" in found:
        found["contest"].pop("variables", None)  # of the environment: some are paths
    run_folder.write_json(goal, {**found, "environment": nameless(found.get("environment", {}))})


def _publish_run(run_dir: Path, goal: Path, shown: str) -> None:
    goal.mkdir()
    found = _read(run_dir / run_folder.CONFIG)
    config = {
        "config": _without_paths(found["config"], shown),
        "environment": nameless(found.get("environment", {})),
    }
    run_folder.write_json(goal / run_folder.CONFIG, config)
    if (run_dir / run_folder.SUMMARY).exists():
        summary = _read(run_dir / run_folder.SUMMARY)
        summary = {name: value for name, value in summary.items() if name not in _FIGURES}
        run_folder.write_json(goal / run_folder.SUMMARY, {**summary, "run_dir": shown})
    shutil.copyfile(run_dir / run_folder.RECORDS, goal / run_folder.RECORDS)


def _without_paths(config: dict[str, Any], run_dir: str) -> dict[str, Any]:
    """Replace the settings that are paths by relative ones."""
    hidden = {} if config.get("data_dir") is None else {"data_dir": f"data/{config['data']}"}
    return {**config, **hidden, "run_dir": run_dir}


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    return values
