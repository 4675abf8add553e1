"""From a target to the list of its runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delaygrad.errors import ConfigError
from delaygrad.reproduce.target import Target
from delaygrad.reproduce.training_target import Choice, Line, TrainingTarget
from delaygrad.training.config import TrainConfig, config_from_json

_WHOLE = Choice(title="")  # where a target has one problem only


@dataclass(frozen=True, kw_only=True)
class Series:
    """What runs with different seeds have in common: a line of the table, a curve of the figure.

    Attributes:
        problem: "" where the target has only one.
        recipe: by name.
        method: by its name on the command line.
        variant: its options in short, "" without any.
        stages: K.
    """

    problem: str
    recipe: str
    method: str
    variant: str
    stages: int

    @property
    def slug(self) -> str:
        """The beginning of its runs' names.

        Example:
            >>> Series(problem="", recipe="sgd", method="ddg", variant="live", stages=4).slug
            'sgd-ddg-live-k4'
        """
        words = filter(None, (self.problem, self.recipe, self.method, self.variant))
        return f"{'-'.join(words)}-k{self.stages}"

    @property
    def method_title(self) -> str:
        """The method in words.

        Example:
            >>> series = Series(problem="", recipe="", method="ddg", variant="live", stages=4)
            >>> series.method_title
            'DDG live'
        """
        return " ".join(filter(None, (self.method.upper(), self.variant)))


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run to be made.

    Attributes:
        target: by name.
        series: what it belongs to.
        seed: its own.
        config: complete but for what measuring would decide; ``run_dir`` is set.
    """

    target: str
    series: Series
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """Its folder's name; other targets may have one of this name too."""
        return f"{self.series.slug}-seed{self.seed}"

    @property
    def label(self) -> str:
        """What a user is told: target and name."""
        return f"{self.target}/{self.name}"

    @property
    def run_dir(self) -> Path:
        """Its folder."""
        assert self.config.run_dir is not None
        return self.config.run_dir


def planned_runs(
    target: Target, scale: str, folder: Path, data_dir: Path | None = None
) -> list[PlannedRun]:
    """List the runs of a scale, the first seed of everything first.

    Args:
        target: of kind training.
        scale: one that it has.
        folder: that the run folders go to.
        data_dir: the data, or a folder with a folder for each data set.

    Raises:
        ConfigError: a setting is unknown or wrong, cuts are missing, or two runs are the same.
    """
    content = target.content
    assert isinstance(content, TrainingTarget)
    found = [
        PlannedRun(
            target=target.name,
            series=series,
            seed=seed,
            config=_config(values, folder, data_dir, target),
        )
        for series, seed, values in _combinations(target, content, scale)
    ]
    ranks = {seed: rank for rank, seed in enumerate(dict.fromkeys(run.seed for run in found))}
    runs = sorted(found, key=lambda run: ranks[run.seed])
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two lines of {target.label} mean the same run (scale: {scale}, run: {name}); "
                "leave one out"
            )
    return runs


def _combinations(
    target: Target, content: TrainingTarget, scale_name: str
) -> Iterator[tuple[Series, int, dict[str, Any]]]:
    scale = content.scales[scale_name]
    problems = content.problems or {"": _WHOLE}
    for line in content.lines(scale_name):
        for problem in line.problems or scale.problems or problems:
            for recipe in line.recipes or scale.recipes or content.recipes:
                for stages in line.stages:
                    series = Series(
                        problem=problem,
                        recipe=recipe,
                        method=line.method,
                        variant=_variant(line),
                        stages=stages,
                    )
                    settings = {
                        **content.settings,
                        **problems[problem].settings,
                        **content.recipes[recipe].settings,
                        **scale.settings,
                        **line.options,
                        "method": line.method,
                        "stages": stages,
                    }
                    model = settings.get("model", TrainConfig().model)
                    settings["cuts"] = _cuts(target, content, model, stages)
                    for seed in line.seeds or scale.seeds:
                        name = f"{series.slug}-seed{seed}"
                        yield series, seed, {**settings, "seed": seed, "run_dir": name}


def _variant(line: Line) -> str:
    """Put a method's options in short.

    Example:
        >>> _variant(Line(method="ddg", stages=(2,), options={"slack": 1, "recompute": True}))
        'slack1-recompute'
    """
    if line.variant:
        return "" if line.variant == "default" else line.variant
    words = []
    for name, value in line.options.items():
        slug = name.replace("_", "-")
        words.append(
            value if isinstance(value, str) else slug if value is True else f"{slug}{value}"
        )
    return "-".join(words)


def _cuts(target: Target, content: TrainingTarget, model: str, stages: int) -> tuple[str, ...]:
    if stages == 1:
        return ()
    try:
        return content.cuts[model][str(stages)]
    except KeyError:
        raise ConfigError(
            f"no cuts for this many stages (target: {target.label}, model: {model}, stages: "
            f'{stages}); add to its file, under [cuts.{model}]: {stages} = ["layer", ...]'
        ) from None


def _config(
    values: dict[str, Any], folder: Path, data_dir: Path | None, target: Target
) -> TrainConfig:
    values = {**values, "run_dir": str(folder / values["run_dir"])}
    data = values.get("data", TrainConfig().data)
    if data != "digits" and data_dir is not None:  # digits come with scikit-learn
        own = data_dir / data
        values["data_dir"] = str(own if own.is_dir() else data_dir)
    return config_from_json(values, f"{target.label}/target.toml")
