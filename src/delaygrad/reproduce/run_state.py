"""What became of a planned run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal, TypeAlias

from delaygrad import checkpoint
from delaygrad.errors import ConfigError
from delaygrad.records import parse_json
from delaygrad.reproduce.target import require_same
from delaygrad.results.group import WITHOUT_EFFECT
from delaygrad.results.run import read_run
from delaygrad.training import TrainConfig, run_folder
from delaygrad.training.config import read_settings

LOG = "runner.log"
_OURS = (
    run_folder.CONFIG, run_folder.RECORDS, run_folder.SUMMARY, run_folder.MODEL, run_folder.LOCK,
    "curves.png",
)  # fmt: skip

State: TypeAlias = Literal["new", "resumable", "finished", "diverged"]


def state_of(run_dir: Path) -> State:
    """Say how far a run is.

    new: there is nothing to resume from. resumable: it has a checkpoint. finished, diverged: there
    is a result.
    """
    if not (run_dir / run_folder.CONFIG).exists():
        if (run_dir / run_folder.SUMMARY).exists():
            raise ConfigError(
                f"results without a {run_folder.CONFIG} beside them ({run_dir}); move them away"
            )
        return "new"
    if (state := read_run(run_dir).state) != "unfinished":
        return state
    return "resumable" if checkpoint.find(run_dir / run_folder.CHECKPOINTS) else "new"


def require_same_settings(config: TrainConfig) -> None:
    """Raise ConfigError if the run in this place, if there is one, has other settings; say which.

    A setting that did not exist when the run was made has its default.
    """
    path = config.run_dir / run_folder.CONFIG
    if not path.exists():
        return
    there, here = _effective(read_settings(path)), _effective(config.to_json())
    require_same("run", config.run_dir, {name: there.get(name) for name in here}, here)


def _effective(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the result."""
    applying = TrainConfig.applying(values)
    return {name: value for name, value in applying.items() if name not in WITHOUT_EFFECT}


def clear(run_dir: Path) -> None:
    """Remove what a run has left, before it begins anew; nothing else in the folder."""
    with run_folder.writing(run_dir):
        for name in _OURS:
            (run_dir / name).unlink(missing_ok=True)
        for name in (run_folder.CHECKPOINTS, run_folder.TENSORBOARD):
            shutil.rmtree(run_dir / name, ignore_errors=True)


def message_of(run_dir: Path) -> str:
    """Return the last line that a failed run has printed."""
    try:
        lines = (run_dir / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("delaygrad: ") if said else "it ended without a message"


def position(run_dir: Path) -> dict[str, Any]:
    """Return the newest event of an active run; {} before there is one.

    It reads only the end of the records, since it is called again and again.
    """
    try:
        with (run_dir / run_folder.RECORDS).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").split("\n")[:-1]
        for line in reversed(lines):
            event = parse_json(line)
            if isinstance(event, dict) and "epoch" in event:
                return event
    except (OSError, ValueError):
        pass  # it is just beginning, or a line is cut
    return {}
