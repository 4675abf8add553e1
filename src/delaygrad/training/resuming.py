"""Find the checkpoint to continue from: the newest sound one, with the same settings and data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delaygrad import checkpoint
from delaygrad.data import DataSource
from delaygrad.errors import CheckpointError
from delaygrad.plain_values import shown
from delaygrad.runtime.control import Control
from delaygrad.training import run_folder
from delaygrad.training.config import TrainConfig, deciding


@dataclass(frozen=True, kw_only=True)
class Resume:
    """How to continue a run.

    Attributes:
        allow_changes: settings that may differ from those of the checkpoint; ``data`` stands for
            the contents of the data, too.
        strict: refuse a run whose newest checkpoint is damaged or missing.
    """

    allow_changes: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a resumed run starts; what the checkpoint says about its run; messages for the user."""

    iteration: int
    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def describe(config: TrainConfig, source: DataSource, run_dir: Path) -> dict[str, Any]:
    """Return the settings, data and records of the run, for a checkpoint."""
    return {
        "settings": config.deciding(),
        "data": source.sha256,
        "records": run_folder.records_checksum(run_dir),
    }


def find_start(run_dir: Path, stages: Iterable[int], control: Control, *, strict: bool) -> Start:
    """Choose the newest checkpoint that is sound for every rank; all ranks call it.

    Damaged ones that are newer are set aside, or, if strict, an error. ``stages`` are those whose
    files this rank answers for.
    """
    checkpoints = run_dir / run_folder.CHECKPOINTS
    newest = checkpoint.find_newest(checkpoints, stages, control.share, strict=strict)
    if newest is None:
        raise CheckpointError("the hosts have no checkpoint in common; start the run again")
    start = Start(iteration=newest.iteration, about=newest.about, notes=newest.notes(checkpoints))
    recorded = control.broadcast(_last_recorded(run_dir) if control.is_reporter else None)
    if recorded > max([newest.iteration, *newest.rejected]):
        gone = f"the newest checkpoint is gone (iteration: {recorded}, found: {newest.iteration})"
        if strict:
            raise CheckpointError(f"{gone}; without --strict, the run continues from this one")
        start.notes.append(f"{gone}; continuing from iteration {newest.iteration}")
    return start


def changes(config: TrainConfig, source: DataSource, start: Start) -> dict[str, dict[str, Any]]:
    """Return the settings that differ from the checkpoint, by name, with both values."""
    recorded, here = start.about.get("settings"), config.deciding()
    there = deciding(recorded) if isinstance(recorded, dict) else {}
    found = {
        name: {"there": there.get(name, "absent"), "here": here.get(name, "absent")}
        for name in {**there, **here}
        if name not in there or name not in here or there[name] != here[name]
    }
    if "data" not in found and start.about.get("data") != source.sha256:
        found["data"] = {"there": f"sha256 {start.about.get('data')}", "here": source.sha256}
    return found


def require_allowed(found: dict[str, dict[str, Any]], allowed: tuple[str, ...]) -> None:
    """Raise CheckpointError unless all changed settings may change; say which, and how."""
    refused = {name: values for name, values in found.items() if name not in allowed}
    if refused:
        told = "; ".join(
            f"{name} there: {shown(values['there'])}, here: {shown(values['here'])}"
            for name, values in refused.items()
        )
        raise CheckpointError(
            f"the run has changed since its checkpoint ({told}); undo the change of its "
            f"{run_folder.CONFIG} or data, or resume with --allow-changes {' '.join(refused)}"
        )


def _last_recorded(run_dir: Path) -> int:
    """Return the iteration of the newest checkpoint on record, -1 if there is none."""
    events, _ = run_folder.sound_events(run_dir)
    written = (event["iteration"] for event in events if event["event"] == "checkpoint")
    return max(written, default=-1)
