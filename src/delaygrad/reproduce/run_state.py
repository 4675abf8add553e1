"""What became of a run, as its folder tells; and whether another process is writing there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from delaygrad.errors import ConfigError, DataError
from delaygrad.methods import foreign_options
from delaygrad.records import read_events
from delaygrad.training import TrainConfig, checkpoint, load_config, run_folder

LOCK = "runner.lock"
LOG = "runner.log"
PLANNED = "planned.json"

State: TypeAlias = Literal["new", "begun", "resumable", "finished", "diverged"]

ASIDE = frozenset({
    "run_dir", "data_dir", "timeout_s", "log_every", "evaluation_batch_size", "checkpoint_every",
    "keep_checkpoints", "trace",
})  # fmt: skip
"""Settings that change neither the arithmetic nor what is tallied."""

_OURS = (
    run_folder.CONFIG, run_folder.RECORDS, run_folder.SUMMARY, run_folder.MODEL, run_folder.LOCK,
    "curves.png",
)  # fmt: skip
_OUR_FOLDERS = (run_folder.CHECKPOINTS, run_folder.TENSORBOARD)


def state_of(run_dir: Path) -> State:
    """Say how far a run is.

    Returns:
        new: there is none. begun: nothing to resume from. resumable: it has a checkpoint.
        finished, diverged: there is a result.

    Raises:
        ConfigError: there are results without their settings.
    """
    if not (run_dir / run_folder.CONFIG).exists():
        if (run_dir / run_folder.SUMMARY).exists():
            raise ConfigError(
                f"results without a {run_folder.CONFIG} beside them ({run_dir}); move them away"
            )
        return "new"
    if (run_dir / run_folder.SUMMARY).exists():
        return "finished"
    if divergence(run_dir) is not None:
        return "diverged"
    return "resumable" if checkpoint.find(run_dir / run_folder.CHECKPOINTS) else "begun"


def divergence(run_dir: Path) -> dict[str, Any] | None:
    """Return the event that tells of a loss that was not finite, None if there is none."""
    path = run_dir / run_folder.RECORDS
    try:
        events = read_events(path) if path.exists() else []
        return events[-1] if events and events[-1]["event"] == "diverged" else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the records of a run are damaged ({path}: {type(error).__name__}: {error}); move the "
            "run away, and the same command makes it anew"
        ) from error


def require_same_settings(config: TrainConfig) -> None:
    """Raise unless the run in this place, if there is one, has the settings of this one.

    A setting that was not there yet when the run was made has its default.

    Raises:
        ConfigError: it has others; says which.
    """
    assert config.run_dir is not None
    path = config.run_dir / run_folder.CONFIG
    if not path.exists():
        return
    there, here = comparable(load_config(path)), comparable(config)
    differing = [
        f"{name}: {_shown(there.get(name))} there, {_shown(here[name])} here"
        for name in here
        if there.get(name) != here[name]
    ]
    if differing:
        raise ConfigError(
            f"there is a run with other settings in this place ({config.run_dir}; "
            f"{'; '.join(differing)}); move it away, or choose another --output"
        )


def comparable(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide what comes out; not those of other methods.

    Example:
        >>> comparable(TrainConfig(optimizer="adam"))["lr"]
        0.001
    """
    values = {**vars(config), "lr": config.base_lr}
    aside = ASIDE | foreign_options(config.method)
    return {name: value for name, value in values.items() if name not in aside}


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def clear(run_dir: Path) -> None:
    """Remove what a run has left, before it begins anew; nothing else in the folder."""
    with run_folder.writing(run_dir):
        for name in _OURS:
            (run_dir / name).unlink(missing_ok=True)
        for name in _OUR_FOLDERS:
            shutil.rmtree(run_dir / name, ignore_errors=True)


def write_planned(config: TrainConfig) -> Path:
    """Write the settings that the run is started with."""
    assert config.run_dir is not None
    path = config.run_dir / PLANNED
    run_folder.write_json(path, config.to_json())
    return path


@contextmanager
def held(run_dir: Path) -> Iterator[int | None]:
    """Within the block, no other runner works on this run.

    Yields:
        The lock's file descriptor, which a child may inherit: then the run is held until the child
        has ended too, whatever becomes of this process. None if somebody else holds it.
    """
    with run_folder.writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def message_of(run_dir: Path) -> str:
    """Return the last line that a failed run has printed."""
    try:
        lines = (run_dir / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("delaygrad: ") if said else "it ended without a message"


def position(run_dir: Path) -> dict[str, Any]:
    """Return the newest event of a run that goes on, {} before there is one.

    Reads the end of the records only: it is called again and again.
    """
    try:
        with (run_dir / run_folder.RECORDS).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").split("\n")[:-1]
        for line in reversed(lines):
            event = json.loads(line)
            if isinstance(event, dict) and "epoch" in event:
                return event
    except (OSError, ValueError):
        pass  # it is just beginning, or a line is cut
    return {}
