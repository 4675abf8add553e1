"""A target that trains: methods x stages x recipes x seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from delaygrad.errors import ConfigError
from delaygrad.plain_values import unknown
from delaygrad.reproduce.grid import Choice, PlannedRun, Series, read_line
from delaygrad.reproduce.runner import make_runs
from delaygrad.reproduce.speed import speed_ups
from delaygrad.reproduce.target import (
    FILE,
    Failure,
    Figures,
    Findings,
    Row,
    Say,
    Scale,
    Sources,
    Target,
    nameless,
)
from delaygrad.results.curves import (
    TimeAxis,
    direction_panels,
    elapsed_axis,
    epochs_axis,
    key_panels,
)
from delaygrad.results.group import BASELINE, RunGroup, by_recipe, series_numbers
from delaygrad.results.report import run_sections
from delaygrad.results.run import Run, read_run
from delaygrad.results.tables import accuracy_table, direction_rows, direction_table
from delaygrad.training import TrainConfig, run_folder
from delaygrad.training.choices import CHOICES

Axis: TypeAlias = Callable[[Sequence[RunGroup]], TimeAxis | None]


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
        seeds = list(dict.fromkeys(run.seed for run in found))
        return sorted(found, key=lambda run: seeds.index(run.seed))

    def _combinations(self, scale_name: str) -> Iterator[tuple[Series, int, dict[str, Any]]]:
        scale, problems = self.scales[scale_name], self.problems or {"": Choice(title="")}
        for number, values in enumerate(scale.lines, start=1):
            place = f"{self.label}/{FILE}: scales.{scale_name}.lines.{number}"
            line = read_line(values, place)
            chosen = line.problems or scale.problems or tuple(problems)
            for problem in _known("problem", chosen, problems, place):
                chosen = line.recipes or scale.recipes or tuple(self.recipes)
                for recipe in _known("recipe", chosen, self.recipes, place):
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
        return TrainConfig.from_json(values, f"{self.label}/{FILE}")

    @classmethod
    def make(
        cls, planned: Sequence[PlannedRun], workers: int | None, say: Say | None
    ) -> list[Failure]:
        """Make the runs that have no result yet; see ``Target``."""
        return make_runs(planned, workers, quiet=say is None)

    def groups(self, planned: Sequence[PlannedRun]) -> dict[Series, RunGroup]:
        """Read the runs that have begun, series by series."""
        series = list(dict.fromkeys(run.series for run in planned))
        names = [one.name for one in sorted(series, key=lambda one: one.method != BASELINE)]
        numbers = series_numbers(names, baseline=any(one.method == BASELINE for one in series))
        several = len({(one.problem, one.recipe) for one in series}) > 1
        return {
            one: RunGroup(
                name=one.name,
                recipe=self._recipe_title(one) if several else "",
                series=numbers[one.name],
                method=one.method,
                num_stages=one.stages,
                runs=tuple(
                    read_run(run.run_dir)
                    for run in planned
                    if run.series == one and run_folder.holds_run(run.run_dir)
                ),
            )
            for one in series
        }

    def _recipe_title(self, series: Series) -> str:
        titles = [self.problems[series.problem].title] if series.problem else []
        return ", ".join([*titles, self.recipes[series.recipe].title])

    def findings(self, planned: Sequence[PlannedRun], speed_rows: Sequence[Row] = ()) -> Findings:
        """Put the runs together; see ``Target``."""
        return self.put_together(planned, lambda groups: projected_axis(groups, speed_rows))

    def put_together(self, planned: Sequence[PlannedRun], axis: Axis) -> Findings:
        """Put the runs together.

        ``axis`` chooses the axis of time of a recipe; None: the time since each run began.
        """
        by_series = self.groups(planned)
        groups, sources = list(by_series.values()), Sources()
        quoted = {g.label: sources.quote(self._published(s)) for s, g in by_series.items()}
        time = {
            recipe: chosen
            for recipe, members in by_recipe(groups).items()
            if (chosen := axis(members)) is not None
        }
        begun = [group for group in groups if group.runs]
        quotes = quoted if self.published else None
        tables = [accuracy_table(groups, quotes), direction_table(groups)]
        return Findings(
            results=self._results(planned, by_series),
            tables=tuple(table for table in tables if table is not None),
            notes=(_EXPLAINED, *sources.notes()),
            figures=self._figures(by_series, time),
            sections=run_sections(begun, quotes, time) if begun else (),
        )

    def _published(self, series: Series) -> list[Any]:
        return [
            number
            for number in self.published
            if not series.variant
            and number.recipe in ("", series.recipe)
            and all(
                getattr(number, n) == getattr(series, n) for n in ("problem", "method", "stages")
            )
        ]

    def _results(
        self, planned: Sequence[PlannedRun], groups: Mapping[Series, RunGroup]
    ) -> dict[str, Any]:
        """Return rows by series, the runs, their environments and direction constants."""
        runs = {run.name: run for group in groups.values() for run in group.runs}
        done = [
            (one, run)
            for one in planned
            if (run := runs.get(one.name)) is not None and run.state != "unfinished"
        ]
        environments: list[dict[str, Any]] = []
        for _, run in done:
            if (environment := nameless(run.environment)) not in environments:
                environments.append(environment)
        direction = [row for _, run in done for row in direction_rows(run)]
        return {
            "environments": environments,
            "rows": [
                _series_row(series, group, list(groups.values()), planned)
                for series, group in groups.items()
            ],
            "runs": [_run_row(one, run) for one, run in done],
            **({"direction": direction} if direction else {}),
        }

    def _figures(self, groups: Mapping[Series, RunGroup], time: Mapping[str, TimeAxis]) -> Figures:
        if self.figure == "direction":
            drawn = {group.label: direction_panels(group) for group in groups.values()}
            return {"direction": {label: panels for label, panels in drawn.items() if panels}}
        found = {}
        for problem in dict.fromkeys(series.problem for series in groups):
            own = [group for series, group in groups.items() if series.problem == problem]
            own = [group for group in own if group.finished or group.count("diverged")]
            if own:
                found[f"curves-{problem}" if problem else "curves"] = {
                    recipe: key_panels(members, time.get(recipe) or elapsed_axis(members))
                    for recipe, members in by_recipe(own).items()
                }
        return found


_EXPLAINED = (
    "Seconds per epoch are of training alone, all stages in turn in one process, beside other runs "
    "on the same machine."
)


def _known(
    what: str, names: tuple[str, ...], known: Mapping[str, Any], place: str
) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise unknown(f"{what} in {place}", name, known, label=what)
    return names


def _series_row(
    series: Series, group: RunGroup, groups: Sequence[RunGroup], planned: Sequence[PlannedRun]
) -> dict[str, Any]:
    finished = [one for one in groups if one.finished]
    baseline = group.baseline_in(finished)
    spread = None if baseline is None else baseline.spread("final_accuracy")
    return {
        **vars(series),
        "series": series.slug,
        "title": series.title,
        "planned": sum(run.series == series for run in planned),
        "done": len(group.finished) + group.count("diverged"),
        "diverged": group.count("diverged"),
        **group.to_json(finished),
        "bp_sd": None if spread is None else spread.sd,
    }


def _run_row(planned: PlannedRun, run: Run) -> dict[str, Any]:
    best, diverged = run.best_test, run.state == "diverged"
    return {
        "name": run.name,
        "series": planned.series.slug,
        "seed": planned.seed,
        "diverged_at_epoch": float(run.events[-1]["epoch"]) if diverged else None,
        "epochs": run.epochs,
        "final_accuracy": run.final_accuracy,
        "best_accuracy": None if best is None else 100 * best["accuracy"],
        "best_epoch": None if best is None else best["epoch"],
        "train_loss": run.train_loss,
        "test_loss": run.test_loss,
        "epoch_s": run.epoch_s,
        "parameters_sha256": (run.summary or {}).get("parameters_sha256", ""),
    }


def projected_axis(groups: Sequence[RunGroup], speed_rows: Sequence[Row]) -> TimeAxis | None:
    """Return an axis of the time with K processes; None where no speed-up of DDG is known.

    An epoch takes as long as one of backpropagation in one process, over the measured speed-up.
    """
    base = next((group for group in groups if group.method == BASELINE), None)
    own = None if base is None else base.spread("epoch_s")
    if base is None or own is None:
        return None
    known = speed_ups(speed_rows, str(base.runs[0].config.get("model")))
    seconds = {g.name: own.mean / known[g.num_stages] for g in groups if _has(g, known)}
    if not seconds:
        return None
    seconds[base.name] = own.mean

    label = "s with K processes (BP's / speed-up)"
    return epochs_axis(seconds, label, "The speed-ups were measured separately.")


def _has(group: RunGroup, speed_ups: Mapping[int, float]) -> bool:
    return group.method == "ddg" and group.num_stages in speed_ups
