"""A target that trains: methods x stages x recipes x seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from delaygrad.errors import ConfigError, PartitionError
from delaygrad.plain_values import unknown
from delaygrad.reproduce import run_state
from delaygrad.reproduce.plan import Choice, Line, PlannedRun, Series, read_line
from delaygrad.reproduce.progress import RunsProgress
from delaygrad.reproduce.runner import Runner
from delaygrad.reproduce.speed import speed_ups
from delaygrad.reproduce.target import (
    Failure,
    Figures,
    Say,
    Scale,
    Sources,
    Target,
    text_table,
)
from delaygrad.reproduce.training_rows import (
    DIRECTION_HEADINGS,
    HEADINGS,
    direction_cells,
    direction_rows,
    nameless,
    run_row,
    series_cells,
    series_row,
)
from delaygrad.results.curves import (
    Measure,
    Point,
    by_epoch,
    curve_panel,
    difference_panel,
    direction_panels,
)
from delaygrad.results.figure import Panel
from delaygrad.results.group import BASELINE, RunGroup, by_recipe, series_numbers
from delaygrad.results.page import Section, Table
from delaygrad.results.report import run_sections
from delaygrad.results.run import read_run
from delaygrad.training import TrainConfig, run_folder
from delaygrad.training.assembly import build_stages
from delaygrad.training.choices import CHOICES


@dataclass(frozen=True, kw_only=True)
class TrainingScale(Scale):
    """How large the experiment is.

    Attributes:
        lines: what is compared.
        seeds: of every line that has none of its own.
        problems: by name; none: all.
        recipes: by name; none: all.
        settings: of every run; they win over those of problem and recipe.
    """

    lines: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    problems: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingTarget(Target):
    """What a ``target.toml`` of kind training says.

    Attributes:
        scales: by name.
        recipes: optimizers, by name.
        problems: networks and data, by name; none: one, which ``settings`` describes.
        settings: of every run, unless something narrower says otherwise.
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
        """Check that names refer to something; settings are checked with each run."""
        if not self.recipes:
            raise ConfigError(f"{place} has no recipe, so that nothing would run")
        for name, scale in self.scales.items():
            where = f"{place}: scales.{name}"
            if not scale.lines or not scale.seeds:
                lacking = "seeds" if scale.lines else "lines"
                raise ConfigError(f"{where} has no {lacking}, so that nothing would run")
            owners: list[TrainingScale | Line] = [scale, *self.lines(name, place)]
            for owner in owners:
                _require_known("recipe", owner.recipes, self.recipes, where)
                _require_known("problem", owner.problems, self.problems, where)
        named = tuple(number.problem for number in self.published if number.problem)
        _require_known("problem", named, self.problems, place)

    def lines(self, scale: str, place: str = "target.toml") -> list[Line]:
        """Return the lines of a scale."""
        lines = enumerate(self.scales[scale].lines, start=1)
        return [
            read_line(values, f"{place}: scales.{scale}.lines.{number}") for number, values in lines
        ]

    def plan(self, scale: str, folder: Path, data_dir: Path | None = None) -> list[PlannedRun]:
        """List the runs of a scale, the first seed of everything first; see ``Target``."""
        found = [
            PlannedRun(
                target=self.name,
                series=series,
                seed=seed,
                config=self._config(values, folder, data_dir),
            )
            for series, seed, values in self._combinations(scale)
        ]
        ranks = {seed: rank for rank, seed in enumerate(dict.fromkeys(run.seed for run in found))}
        runs = sorted(found, key=lambda run: ranks[run.seed])
        names = [run.name for run in runs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"two lines of {self.label} mean the same run (scale: {scale}, run: {name}); "
                    "leave one out"
                )
        return runs

    def _combinations(self, scale_name: str) -> Iterator[tuple[Series, int, dict[str, Any]]]:
        scale, problems = self.scales[scale_name], self.problems or {"": Choice(title="")}
        for line in self.lines(scale_name):
            for problem in line.problems or scale.problems or problems:
                for recipe in line.recipes or scale.recipes or self.recipes:
                    for stages in line.stages:
                        series = Series(
                            problem=problem,
                            recipe=recipe,
                            method=line.method,
                            variant=line.short(),
                            stages=stages,
                        )
                        settings = {
                            **self.settings,
                            **problems[problem].settings,
                            **self.recipes[recipe].settings,
                            **scale.settings,
                            **line.options,
                            "method": line.method,
                            "stages": stages,
                        }
                        settings["cuts"] = self._cuts(settings)
                        for seed in line.seeds or scale.seeds:
                            name = f"{series.slug}-seed{seed}"
                            yield series, seed, {**settings, "seed": seed, "run_dir": name}

    def _cuts(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        model, stages = settings.get("model", CHOICES["model"].default), settings["stages"]
        if stages == 1:
            return ()
        try:
            return self.cuts[model][str(stages)]
        except KeyError:
            raise ConfigError(
                f"no cuts for this many stages (target: {self.label}, model: {model}, stages: "
                f'{stages}); add to its file, under [cuts.{model}]: {stages} = ["layer", ...]'
            ) from None

    def _config(self, values: dict[str, Any], folder: Path, data_dir: Path | None) -> TrainConfig:
        values = {**values, "run_dir": str(folder / values["run_dir"])}
        data = values.get("data", CHOICES["data"].default)
        if data != "digits" and data_dir is not None:  # digits come with scikit-learn
            own = data_dir / data
            values["data_dir"] = str(own if own.is_dir() else data_dir)
        return TrainConfig.from_json(values, f"{self.label}/target.toml")

    @classmethod
    def make(
        cls, planned: Sequence[PlannedRun], workers: int | None, say: Say | None
    ) -> list[Failure]:
        """Make the runs that have no result yet; see ``Target``."""
        for run in planned:
            run_state.require_same_settings(run.config)
        missing = [run for run in planned if not run.is_done()]
        if not missing:
            return []
        _require_possible(missing)
        with RunsProgress(planned, quiet=say is None) as progress:
            return Runner(planned, workers=workers or _workers(planned), progress=progress).run()

    def groups(self, planned: Sequence[PlannedRun]) -> dict[Series, RunGroup]:
        """Read the runs that have begun, series by series."""
        series = sorted(
            dict.fromkeys(run.series for run in planned), key=lambda s: s.method != BASELINE
        )
        has_baseline = any(one.method == BASELINE for one in series)
        numbers = series_numbers((one.name for one in series), baseline=has_baseline)
        several = len({(one.problem, one.recipe) for one in series}) > 1
        return {
            one: RunGroup(
                name=one.name,
                recipe=self._recipe_title(one.problem, one.recipe) if several else "",
                series=numbers[one.name],
                method=one.method,
                num_stages=one.stages,
                runs=tuple(
                    read_run(run.run_dir)
                    for run in planned
                    if run.series == one and run_folder.holds_run(run.run_dir)
                ),
            )
            for one in dict.fromkeys(run.series for run in planned)
        }

    def _recipe_title(self, problem: str, recipe: str) -> str:
        titles = [self.problems[problem].title] if problem else []
        return ", ".join([*titles, self.recipes[recipe].title])

    def results(self, planned: Sequence[PlannedRun]) -> dict[str, Any]:
        """Return rows by series, the runs, their environments and direction constants."""
        groups = self.groups(planned)
        runs = {run.name: run for group in groups.values() for run in group.runs}
        done = [
            (planned_run, run)
            for planned_run in planned
            if (run := runs.get(planned_run.name)) is not None and run.state != "unfinished"
        ]
        environments: list[dict[str, Any]] = []
        for _, run in done:
            if (environment := nameless(run.environment)) not in environments:
                environments.append(environment)
        direction = [row for planned_run, run in done for row in direction_rows(run)]
        return {
            "environments": environments,
            "rows": [
                series_row(series, group, list(groups.values()), planned)
                for series, group in groups.items()
            ],
            "runs": [run_row(planned_run, run) for planned_run, run in done],
            **({"direction": direction} if direction else {}),
        }

    def tables(self, results: Mapping[str, Any]) -> tuple[list[Table], list[str]]:
        """Tabulate the rows recipe by recipe, and the direction constants; see ``Target``."""
        sources, tables = Sources(), []
        for problem, recipe in dict.fromkeys((r["problem"], r["recipe"]) for r in results["rows"]):
            rows = [r for r in results["rows"] if (r["problem"], r["recipe"]) == (problem, recipe)]
            cells = [series_cells(row, self.published, sources) for row in rows]
            tables.append(text_table(self._recipe_title(problem, recipe), HEADINGS, cells))
        if results.get("direction"):
            title = "Sufficient direction constant of each stage, over the probes"
            cells = [direction_cells(row) for row in results["direction"]]
            tables.append(text_table(title, DIRECTION_HEADINGS, cells))
        explained = (
            "Mean ± sample standard deviation over the seeds, without runs that diverged. Final: "
            "after the last epoch. Best: the best epoch on the test set, as papers report it. "
            "Differences to BP are taken seed by seed. Seconds are of training alone, all stages "
            "in turn in one process, beside other runs on the same machine."
        )
        return tables, [explained, *sources.notes()]

    def figures(
        self, planned: Sequence[PlannedRun], speed_rows: Sequence[Mapping[str, Any]] = ()
    ) -> Figures:
        """Draw a figure for each problem, or the direction constants; see ``Target``."""
        groups = self.groups(planned)
        if self.figure == "direction":
            drawn = {group.label: direction_panels(group) for group in groups.values()}
            return {"direction": {label: panels for label, panels in drawn.items() if panels}}
        found = {}
        for problem in dict.fromkeys(series.problem for series in groups):
            own = [group for series, group in groups.items() if series.problem == problem]
            own = [group for group in own if group.finished or group.count("diverged")]
            if own:
                known = speed_ups(speed_rows, str(own[0].runs[0].config.get("model")))
                found[f"curves-{problem}" if problem else "curves"] = {
                    recipe: _curve_panels(members, known)
                    for recipe, members in by_recipe(own).items()
                }
        return found

    def sections(self, planned: Sequence[PlannedRun]) -> tuple[Section, ...]:
        """Return the report of the runs without what tables and figures have shown already."""
        groups = [group for group in self.groups(planned).values() if group.runs]
        shown = {"Accuracy", "Sufficient direction" if self.figure == "direction" else ""}
        found = run_sections(groups) if groups else ()
        return tuple(section for section in found if section.heading not in shown)


def _require_known(what: str, names: tuple[str, ...], known: Mapping[str, Any], at: str) -> None:
    for name in names:
        if name not in known:
            raise unknown(f"{what} in {at}", name, known, label=what)


def _require_possible(runs: Sequence[PlannedRun]) -> None:
    """Complain before anything starts, and not once for each run."""
    if any(run.config.run.device == "cuda" for run in runs) and not torch.cuda.is_available():
        raise ConfigError("too few GPUs (found: 0, needed: 1); use --scale cpu")
    for run in runs:
        run.config.check()
    sources = {data: data.load() for data in {run.config.data for run in runs}}
    networks = {(run.config.data, run.config.model, run.config.run.cuts): run for run in runs}
    for run in networks.values():
        source = sources[run.config.data]
        try:
            build_stages(run.config, source, torch.device("cpu"))
        except PartitionError as error:
            raise PartitionError(f"[{run.label}] {error}") from error


def _workers(runs: Sequence[PlannedRun]) -> int:
    if any(run.config.run.device == "cuda" for run in runs):
        return max(torch.cuda.device_count(), 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cores or 1) // max(run.config.run.threads for run in runs), 1)


def _curve_panels(
    groups: Sequence[RunGroup], known: Mapping[int, tuple[float, str]]
) -> list[Panel]:
    """Draw one recipe: loss against time, accuracy against epochs, and what it is minus BP's."""
    seconds = epoch_seconds(groups, known)

    def by_time(group: RunGroup, point: Point) -> float | None:
        epoch_s = seconds.get(group.name)
        return None if epoch_s is None else epoch_s * point.epoch

    loss, accuracy = Measure("train", "loss"), Measure("test", "accuracy")
    found = [
        curve_panel(groups, loss, by_time, time_label(known)),
        curve_panel(groups, accuracy, by_epoch, "epoch"),
        difference_panel(groups, accuracy),
    ]
    return [panel for panel in found if panel is not None]


def epoch_seconds(
    groups: Sequence[RunGroup], known: Mapping[int, tuple[float, str]]
) -> dict[str, float]:
    """Return the seconds of an epoch by group name: in one process, or with K processes.

    Args:
        groups: of one recipe.
        known: speed-ups of DDG with K processes, by K; empty: take what one process measured.
    """
    own = {g.name: s.mean for g in groups if (s := g.spread("epoch_s")) is not None}
    if not known:
        return own
    base = next((own.get(group.name) for group in groups if group.method == BASELINE), None)
    if base is None:
        return {}
    ratios = {
        group.name: 1.0 if group.method == BASELINE else known[group.num_stages][0]
        for group in groups
        if group.method == BASELINE or (group.method == "ddg" and group.num_stages in known)
    }
    return {name: base / ratio for name, ratio in ratios.items()}


def time_label(known: Mapping[int, tuple[float, str]]) -> str:
    """Say what the axis of time shows."""
    if not known:
        return "s of one process, all stages in turn"
    return "s with K processes (BP's / speed-up)"
