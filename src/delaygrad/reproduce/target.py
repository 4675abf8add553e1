"""A target: a folder of experiments that says, as data, how to reproduce a figure or a table.

    experiments/<paper>-<target>/target.toml     what to run, at which scales; what was published
                                 README.md       what came out, and what it means
                                 records/        our records, tables and figures

Whoever wants a paper of their own reproduced adds such folders; nothing here knows any paper.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from delaygrad.errors import ConfigError
from delaygrad.reproduce.memory_target import MemoryTarget
from delaygrad.reproduce.reading import read, unknown
from delaygrad.reproduce.speed_target import SpeedTarget
from delaygrad.reproduce.training_target import TrainingTarget

FILE = "target.toml"
Content: TypeAlias = TrainingTarget | SpeedTarget | MemoryTarget
ScaleName: TypeAlias = Literal["smoke", "cpu", "gpu"]

_KINDS: dict[str, type[Content]] = {
    "training": TrainingTarget,
    "speed": SpeedTarget,
    "memory": MemoryTarget,
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A figure or table of a paper.

    Attributes:
        paper: the first part of the folder's name.
        name: the rest of it.
        folder: of the experiment.
        content: what ``target.toml`` says.
    """

    paper: str
    name: str
    folder: Path
    content: Content

    @property
    def label(self) -> str:
        """The folder's name."""
        return f"{self.paper}-{self.name}"

    def heading(self, scale: str) -> str:
        """The title; a smoke run is called one, since it may not even use the same data."""
        return f"{self.content.title} (smoke)" if scale == "smoke" else self.content.title


def find_targets(experiments: Path, paper: str, names: tuple[str, ...] = ()) -> list[Target]:
    """Find the targets of a paper.

    Args:
        experiments: the folder that holds a folder for each.
        paper: the first part of their names.
        names: of the targets wanted, with or without the paper's; none: all.

    Raises:
        ConfigError: there is none, not this one, or its file is wrong.
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
    """Read a target's file.

    Raises:
        ConfigError: it cannot be read, or something in it is unknown, missing or contradictory.
    """
    path = folder / FILE
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the target ({path}): {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"cannot parse the target ({path}): {error}") from error
    kind = values.get("kind")
    if kind not in _KINDS:
        raise unknown(f"kind in {path}", str(kind), _KINDS, label="kind")
    name = folder.name.removeprefix(f"{paper}-")
    content: Content = read(_KINDS[kind], values, str(path))
    content.check(str(path))
    return Target(paper=paper, name=name, folder=folder, content=content)
