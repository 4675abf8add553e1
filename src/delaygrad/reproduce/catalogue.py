"""Find the targets of a paper, and read their files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from delaygrad.errors import ConfigError
from delaygrad.plain_values import read, unknown
from delaygrad.reproduce.memory import MemoryTarget
from delaygrad.reproduce.speed import SpeedTarget
from delaygrad.reproduce.target import FILE, Target
from delaygrad.reproduce.training import TrainingTarget

_KINDS: dict[str, type[Target]] = {
    "training": TrainingTarget,
    "speed": SpeedTarget,
    "memory": MemoryTarget,
}


def find_targets(experiments: Path, paper: str, names: tuple[str, ...] = ()) -> list[Target]:
    """Find the targets of a paper; only those named, with or without the paper, if some are.

    A ConfigError says that there is none, not this one, or what is wrong with its file.
    """
    folders = {
        path.parent.name.removeprefix(f"{paper}-"): path.parent
        for path in sorted(experiments.glob(f"{paper}-*/{FILE}"))
    }
    if not folders:
        others = sorted({path.parent.name for path in experiments.glob(f"*/{FILE}")})
        found = f"found there: {', '.join(others)}; " if others else ""
        raise ConfigError(
            f"there is nothing to reproduce of this paper (paper: {paper}, looked for: "
            f"{experiments / f'{paper}-*' / FILE}); {found}run this in a checkout of the "
            "repository, or say where its targets are with --experiments FOLDER"
        )
    wanted = dict.fromkeys(name.removeprefix(f"{paper}-") for name in names) or folders
    for name in wanted:
        if name not in folders:
            raise unknown(f"target of {paper}", name, folders, label="target")
    return [load_target(folders[name], paper) for name in wanted]


def load_target(folder: Path, paper: str) -> Target:
    """Read a target's file; a ConfigError says what is wrong with it."""
    path = folder / FILE
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the target ({path}): {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"cannot parse the target ({path}): {error}") from error
    kind = _KINDS.get(str(values.get("kind")))
    if kind is None:
        raise unknown(f"kind in {path}", str(values.get("kind")), _KINDS, label="kind")
    target = read(kind, values, str(path), given={"folder": folder, "paper": paper})
    target.check()
    return target
