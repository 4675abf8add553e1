"""A target that trains: methods x stages x recipes x seeds."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from delaygrad.errors import ConfigError
from delaygrad.methods import METHODS
from delaygrad.reproduce.header import Header
from delaygrad.reproduce.reading import read, unknown
from delaygrad.training import TrainConfig

_DECIDED = {"seed", "cuts", "run_dir", "data_dir"}  # by other means than a line


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Settings of ``TrainConfig`` under a name: a problem (network and data), or a recipe.

    Attributes:
        title: in words.
        settings: by name.
    """

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
        variant: what tables and folders call the options; by default each is spelled out, and
            "default" says nothing of them.
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


@dataclass(frozen=True, kw_only=True)
class TrainingScale:
    """How large the experiment is.

    Attributes:
        about: in words: what is smaller than in the paper, and about how long it takes.
        lines: what is compared.
        seeds: of every line that has none of its own.
        problems: by name; none: all.
        recipes: by name; none: all.
        settings: of every run; they win over those of problem and recipe.
    """

    about: str
    lines: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    problems: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingTarget(Header):
    """What a ``target.toml`` of kind training says.

    Attributes:
        scales: by name.
        recipes: optimizers, by name.
        problems: networks and data, by name; none: one, which ``settings`` describes.
        settings: of every run, unless something else says otherwise.
        cuts: network -> number of stages -> first layer of each stage but the first.
        figure: curves: loss and accuracy; direction: the sufficient direction constant.
    """

    scales: dict[str, TrainingScale]
    recipes: dict[str, Choice]
    problems: dict[str, Choice] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    cuts: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    figure: Literal["curves", "direction"] = "curves"

    def check(self, place: str) -> None:
        """Check that names refer to something, and that something runs.

        The settings are checked with each run.

        Raises:
            ConfigError: they do not, or nothing does.
        """
        if not self.recipes:
            raise ConfigError(f"{place} has no recipe, so that nothing would run")
        for name, scale in self.scales.items():
            where = f"{place}: scales.{name}"
            if not scale.lines or not scale.seeds:
                lacking = "seeds" if scale.lines else "lines"
                raise ConfigError(f"{where} has no {lacking}, so that nothing would run")
            _require_known("recipe", scale.recipes, self.recipes, where)
            _require_known("problem", scale.problems, self.problems, where)
            for line in self.lines(name, place):
                _require_known("recipe", line.recipes, self.recipes, where)
                _require_known("problem", line.problems, self.problems, where)
        for number in self.published:
            if number.problem and number.problem not in self.problems:
                raise unknown(f"problem in {place}", number.problem, self.problems, "problem")

    def lines(self, scale: str, place: str = "target.toml") -> list[Line]:
        """Return the lines of a scale.

        Raises:
            ConfigError: one has an unknown key.

        Example:
            >>> scale = TrainingScale(about="", seeds=(0,),
            ...     lines=({"method": "ddg", "stages": [2, 4], "slack": 1},))
            >>> target = TrainingTarget(title="", kind="training", reference="", recipes={},
            ...     scales={"cpu": scale})
            >>> [line.options for line in target.lines("cpu")]
            [{'slack': 1}]
        """
        lines = enumerate(self.scales[scale].lines, start=1)
        return [
            _line(values, f"{place}: scales.{scale}.lines.{number}") for number, values in lines
        ]


def _line(values: dict[str, Any], place: str) -> Line:
    own = {f.name for f in dataclasses.fields(Line)} - {"options"}
    settings = {f.name for f in dataclasses.fields(TrainConfig)} - _DECIDED - own
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


def _require_known(what: str, names: tuple[str, ...], known: Any, place: str) -> None:
    for name in names:
        if name not in known:
            raise unknown(f"{what} in {place}", name, known, label=what)
