"""The lines of a grid of runs, and the runs that they mean."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delaygrad.errors import ConfigError
from delaygrad.methods import METHODS
from delaygrad.plain_values import read, unknown
from delaygrad.reproduce import run_state
from delaygrad.results.group import method_title
from delaygrad.training import TrainConfig

_DECIDED = {"seed", "cuts", "run_dir", "data_dir"}  # settings that a line does not choose


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Settings of ``TrainConfig`` under a title: a problem (network and data), or a recipe."""

    title: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Runs that differ in problem, recipe, number of stages and seed only.

    Attributes:
        method: by its name on the command line.
        stages: K, one or several.
        problems: by name; none: all that the scale has.
        recipes: by name; none: all that the scale has.
        seeds: if other ones than the scale's.
        variant: what tables and folders call the options; by default each is written out, and
            "default" leaves them out.
        options: other settings of ``TrainConfig``, mostly of the method; in the file they stand
            beside the other keys.
    """

    method: str
    stages: tuple[int, ...]
    problems: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    variant: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def short(self) -> str:
        """Return the options in short.

        Example:
            >>> Line(method="ddg", stages=(2,), options={"slack": 1, "recompute": True}).short()
            'slack1-recompute'
        """
        if self.variant:
            return "" if self.variant == "default" else self.variant
        words = []
        for name, value in self.options.items():
            slug = name.replace("_", "-")
            words.append(
                value if isinstance(value, str) else slug if value is True else f"{slug}{value}"
            )
        return "-".join(words)


@dataclass(frozen=True, kw_only=True)
class Series:
    """What runs with different seeds have in common: a row of a table, a line of a figure.

    Attributes:
        problem: "" where the target has only one.
        recipe: by name.
        method: by its name on the command line.
        variant: the options in short, "" without any.
        stages: K.
    """

    problem: str
    recipe: str
    method: str
    variant: str
    stages: int

    @property
    def slug(self) -> str:
        """The beginning of the names of its runs, such as ``sgd-ddg-live-k4``."""
        words = filter(None, (self.problem, self.recipe, self.method, self.variant))
        return f"{'-'.join(words)}-k{self.stages}"

    @property
    def title(self) -> str:
        """The method in words, without K."""
        return method_title(self.method, self.variant)

    @property
    def name(self) -> str:
        """The method in words, with K."""
        return method_title(self.method, self.variant, num_stages=self.stages)


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run to be made; ``config`` has its ``run_dir``.

    Two targets may have runs of the same name; labels differ.
    """

    target: str
    series: Series
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.series.slug}-seed{self.seed}"

    @property
    def label(self) -> str:
        """Target and name."""
        return f"{self.target}/{self.name}"

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.config.run_dir

    def is_done(self) -> bool:
        """Whether there is a result; divergence is one."""
        return run_state.state_of(self.run_dir) in ("finished", "diverged")


def read_line(values: dict[str, Any], place: str) -> Line:
    """Read a line of a file; a ConfigError names the key or value that is wrong."""
    own = {f.name for f in dataclasses.fields(Line)} - {"options"}
    settings = set(TrainConfig.setting_names()) - _DECIDED - own
    options = {key: value for key, value in values.items() if key in settings}
    for key in values:
        if key not in own | settings:
            raise unknown(f"key in {place}", key, sorted(own | settings), label="key")
    known = {key: value for key, value in values.items() if key in own}
    line = dataclasses.replace(read(Line, known, place), options=options)
    if line.method not in METHODS:
        raise unknown(f"method in {place}", line.method, METHODS, label="method")
    if not re.fullmatch(r"[A-Za-z0-9.-]*", line.variant) or ".." in line.variant:
        raise ConfigError(
            f"a variant is part of a folder's name in {place} (variant: {line.variant!r}); use "
            "letters, digits, dots and dashes"
        )
    if not line.stages or min(line.stages) < 1:
        raise ConfigError(f"stages must be at least 1 in {place} (stages: {list(line.stages)})")
    return line
