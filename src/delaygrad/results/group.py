"""Runs that differ in their seed alone, and what they show together.

A recipe is everything but the method, its options and K. Means are over the finished runs of a
group. The difference to backpropagation is taken seed by seed (a seed decides the initial weights
and the order of the data), then averaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from delaygrad.records.spread import Spread, spread_json, spread_of
from delaygrad.results.run import Run
from delaygrad.training.config import TrainConfig

BASELINE = "bp"

_RECORDS = frozenset(TrainConfig.setting_names("records"))
WITHOUT_EFFECT = (_RECORDS - {"evaluate_every", "monitor_every"}) | {"data_dir", "timeout_s"}
"""Settings that change no number of a result."""

_NOT_COMPARED = WITHOUT_EFFECT | _RECORDS | {"seed"}
_OPTIONS = set(TrainConfig.setting_names("method")) - {"method"}
_METHOD_AXES = {"method", "stages", *_OPTIONS, "cuts", "runtime", "threads"}
_NAMED_BY_VALUE = ("data", "model", "optimizer", "runtime", "lr_schedule")
_NAMED_FIRST = (
    *_NAMED_BY_VALUE[:3], *TrainConfig.setting_names("method"), "lr", "batch_size", "epochs",
    "lr_schedule",
)  # fmt: skip

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs of one recipe, method and K.

    Attributes:
        name: of the method, its K and options, as far as those differ within a report.
        recipe: the rest, as far as that differs; "" if all groups have the same.
        series: the number that decides the colour; the same name has the same one in all recipes.
        method: short name.
        num_stages: K.
        runs: in the order of their seeds.
    """

    name: str
    recipe: str
    series: int
    method: str
    num_stages: int
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """Name and recipe: different for all groups of a report."""
        return ", ".join(filter(None, (self.name, self.recipe)))

    @property
    def finished(self) -> tuple[Run, ...]:
        """The finished runs; means are over these."""
        return tuple(run for run in self.runs if run.state == "finished")

    @property
    def drawn(self) -> tuple[Run, ...]:
        """The finished runs; all runs where none is finished."""
        return self.finished or self.runs

    def count(self, state: str) -> int:
        """Count the runs in a state."""
        return sum(run.state == state for run in self.runs)

    def spread(self, name: str) -> Spread | None:
        """Return the spread of an attribute of ``Run`` or of a number of its summary."""
        own = (getattr(run, name) if hasattr(Run, name) else run.result(name) for run in self.runs)
        finished = (run.state == "finished" for run in self.runs)
        return spread_of(value for value, done in zip(own, finished, strict=True) if done)

    def baseline_in(self, groups: Iterable[RunGroup]) -> RunGroup | None:
        """Find backpropagation with the same recipe, on the fewest stages; None without one."""
        found = [
            group for group in groups if group.method == BASELINE and group.recipe == self.recipe
        ]
        return min(found, key=lambda group: group.num_stages, default=None)

    def minus_baseline_in(self, groups: Iterable[RunGroup]) -> Spread | None:
        """Return final accuracy minus backpropagation's, seed by seed; None for itself."""
        if self.method == BASELINE or (baseline := self.baseline_in(groups)) is None:
            return None
        known = {run.seed: run.final_accuracy for run in baseline.finished}
        pairs = ((run.final_accuracy, known.get(run.seed)) for run in self.finished)
        return spread_of(own - other for own, other in pairs if None not in (own, other))  # type: ignore[operator]

    def to_json(self, groups: Iterable[RunGroup]) -> dict[str, Any]:
        """Return the numbers of the group as results.json and ``report --json`` hold them."""
        names = ("final_accuracy", "best_accuracy", "train_loss", "test_loss", "epoch_s")
        return {
            **{name: spread_json(self.spread(name)) for name in names},
            "minus_bp": spread_json(self.minus_baseline_in(groups)),
        }


def group_runs(runs: Sequence[Run]) -> tuple[RunGroup, ...]:
    """Put runs that differ in their seed alone into a group.

    Recipes come in the order of the runs; within a recipe, backpropagation, then the methods by
    name, K and number of options.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(_identity(_settings(run)), []).append(run)
    groups = sorted(members.values(), key=lambda group: _order(group[0]))
    methods = [_method_settings(group[0]) for group in groups]
    names = _tell_apart(methods, [_method_name(method) for method in methods])
    recipes = _tell_apart([_recipe_settings(run) for run in runs])
    numbers = series_numbers(names.values(), baseline=any(run.method == BASELINE for run in runs))
    ranks = list(recipes.values())
    found = []
    for group, method in zip(groups, methods, strict=True):
        name, recipe = names[_identity(method)], recipes[_identity(_recipe_settings(group[0]))]
        found.append(
            RunGroup(
                name=name,
                recipe=recipe,
                series=numbers[name],
                method=group[0].method,
                num_stages=group[0].num_stages,
                runs=tuple(sorted(group, key=_by_seed)),
            )
        )
    return tuple(sorted(found, key=lambda group: ranks.index(group.recipe)))


def series_numbers(names: Iterable[str], *, baseline: bool) -> dict[str, int]:
    """Number names for their colours. 0, grey, is for backpropagation, which then comes first."""
    return {name: n for n, name in enumerate(dict.fromkeys(names), start=0 if baseline else 1)}


def by_recipe(groups: Iterable[RunGroup]) -> dict[str, tuple[RunGroup, ...]]:
    """Sort groups by their recipe."""
    found: dict[str, tuple[RunGroup, ...]] = {}
    for group in groups:
        found[group.recipe] = (*found.get(group.recipe, ()), group)
    return found


def method_title(method: str, *options: str, num_stages: int | None = None) -> str:
    """Write a method as the literature does; plain backpropagation on one stage needs no K.

    Example:
        >>> method_title("ddg", "live", num_stages=4), method_title("bp", num_stages=1)
        ('DDG live K=4', 'BP')
    """
    title = " ".join(filter(None, (method.upper(), *options)))
    plain = num_stages is None or (method, num_stages) == (BASELINE, 1)
    return title if plain else f"{title} K={num_stages}"


def _method_name(settings: Settings) -> str:
    live = ("live",) if settings.get("weights") == "live" else ()
    return method_title(settings["method"], *live, num_stages=settings["stages"])


def _by_seed(run: Run) -> tuple[bool, int]:
    return (False, run.seed) if isinstance(run.seed, int) else (True, 0)


def _order(run: Run) -> tuple[bool, str, int, int]:
    method, defaults = _method_settings(run), TrainConfig.applying({"method": run.method})
    options = sum(method[name] != defaults.get(name) for name in _OPTIONS & method.keys())
    return run.method != BASELINE, run.method, run.num_stages, options


def _settings(run: Run) -> dict[str, Any]:
    """Return what decides the result; a setting that the run's version lacked has its default."""
    applying = TrainConfig.applying(run.config)
    return {name: value for name, value in applying.items() if name not in _NOT_COMPARED}


def _method_settings(run: Run) -> dict[str, Any]:
    return {name: value for name, value in _settings(run).items() if name in _METHOD_AXES}


def _recipe_settings(run: Run) -> dict[str, Any]:
    return {name: value for name, value in _settings(run).items() if name not in _METHOD_AXES}


def _identity(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def _tell_apart(settings: Sequence[Settings], names: Sequence[str] = ()) -> dict[str, str]:
    """Give different settings different names, by ``_identity``, with few settings in them.

    ``names`` are those that they have already.
    """
    given = names or [""] * len(settings)
    start = {_identity(one): (one, name) for one, name in zip(settings, given, strict=True)}
    different = [one for one, _ in start.values()]
    found = [name for _, name in start.values()]
    for key in dict.fromkeys([*_NAMED_FIRST, *sorted({key for one in different for key in one})]):
        if len(set(found)) == len(found):
            break
        texts = [_setting_name(key, one) for one in different]
        values: dict[str, set[str]] = {}
        for name, value in zip(found, texts, strict=True):
            values.setdefault(name, set()).add(value)
        found = [
            ", ".join(filter(None, (name, value))) if len(values[name]) > 1 else name
            for name, value in zip(found, texts, strict=True)
        ]
    return dict(zip(start, found, strict=True))


def _setting_name(key: str, settings: Settings) -> str:
    value = settings.get(key, "not recorded")
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        value = f"{value:g}"
    return str(value) if key in _NAMED_BY_VALUE else f"{key} {value}"
