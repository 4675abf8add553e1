"""Runs that differ in their seed alone, and what they show together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from delaygrad.methods import foreign_options
from delaygrad.report.naming import Settings, identity, method_name, tell_apart
from delaygrad.report.quantities import Spread, spread_of
from delaygrad.report.run_record import RunRecord

_NO_PART_OF_THE_RECIPE = {
    "seed", "run_dir", "data_dir", "log_every", "evaluate_every", "evaluation_batch_size",
    "checkpoint_every", "keep_checkpoints", "trace", "probe_every", "timeout_s",
}  # fmt: skip

_METHOD_AXES = (
    "method", "stages", "weights", "label_conditioned", "synthesizer_width", "synthesizer_layers",
    "synthesizer_kernel", "synthesizer_lr", "slack", "micro_batches", "recompute", "stash_dtype",
    "boundary_dtype", "cuts", "runtime", "threads",
)  # fmt: skip
"""Settings in which a method may differ from the backpropagation that it is compared with."""

_BEFORE_IT_WAS_A_SETTING: dict[str, Any] = {
    "slack": 0, "micro_batches": 1, "recompute": False, "stash_dtype": None,
    "boundary_dtype": None, "trace": 0, "weights": "stash", "label_conditioned": False,
    "synthesizer_width": None, "synthesizer_layers": 2, "synthesizer_kernel": 5,
    "synthesizer_lr": 0.0001, "lr_time_scale": 1000.0, "lr_power": 0.6, "probe_every": 0,
}  # fmt: skip
"""What runs did whose version did not yet have the setting: its default, then as now."""


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs of one recipe, method and K.

    Attributes:
        name: of the method, its K and options, as far as those differ within a report.
        recipe: of the rest, as far as that differs; nothing if all groups have the same.
        series: the number that decides its colour, the same for one name in all recipes.
        runs: at least one, in the order of their seeds.
    """

    name: str
    recipe: str
    series: int
    runs: tuple[RunRecord, ...]

    @property
    def label(self) -> str:
        """What tells it from all other groups of a report."""
        return ", ".join(filter(None, (self.name, self.recipe)))

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that came to their end; means are over these."""
        return tuple(run for run in self.runs if run.state == "finished")

    @cached_property
    def final_test(self) -> Spread | None:
        """Final test accuracy, a fraction."""
        return spread_of(run.final_test for run in self.runs)

    @cached_property
    def best_test(self) -> Spread | None:
        """Best test accuracy, each run's chosen on the test set."""
        best = [run.best_test for run in self.runs]
        return spread_of(None if event is None else float(event["accuracy"]) for event in best)

    def result(self, name: str) -> Spread | None:
        """Return the spread of a number of the summaries."""
        return spread_of(run.result(name) for run in self.runs)

    def baseline_in(self, groups: Iterable[RunGroup]) -> RunGroup | None:
        """Find backpropagation with the same recipe; where there is a choice, on the fewest stages.

        Returns:
            None for a group that is itself backpropagation, or has no such partner.
        """
        if self.runs[0].method == "bp":
            return None
        recipe = _split(self.runs[0])[1]
        found = [
            group
            for group in groups
            if group.runs[0].method == "bp" and _split(group.runs[0])[1] == recipe
        ]
        return min(found, key=lambda group: group.runs[0].num_stages, default=None)

    def minus_baseline_in(self, groups: Iterable[RunGroup]) -> float | None:
        """Return mean final test accuracy minus that of the baseline, None if one is missing."""
        baseline = self.baseline_in(groups)
        if baseline is None or baseline.final_test is None or self.final_test is None:
            return None
        return self.final_test.mean - baseline.final_test.mean


def group_runs(runs: Sequence[RunRecord]) -> tuple[RunGroup, ...]:
    """Put runs that differ in their seed alone into a group.

    Recipes come in the order in which they are first met; within one, backpropagation, then the
    methods by name, K and number of options.
    """
    members: dict[str, list[RunRecord]] = {}
    for run in runs:
        members.setdefault(identity(_settings(run)), []).append(run)
    groups = sorted(members.values(), key=lambda group: _order(group[0]))
    methods = _tell_methods_apart([_split(group[0])[0] for group in groups])
    recipes = tell_apart([_split(run)[1] for run in runs])  # in the order of the runs
    series = {name: number for number, name in enumerate(methods, start=_first_colour(groups))}
    found = []
    for group in groups:
        method, recipe = map(identity, _split(group[0]))
        found.append(
            RunGroup(
                name=methods[method],
                recipe=recipes[recipe],
                series=series[method],
                runs=tuple(sorted(group, key=_by_seed)),
            )
        )
    ranks = list(recipes.values())
    return tuple(sorted(found, key=lambda group: ranks.index(group.recipe)))


def by_recipe(groups: Iterable[RunGroup]) -> dict[str, tuple[RunGroup, ...]]:
    """Sort groups, which are in the order of ``group_runs``, by their recipe."""
    return {
        recipe: tuple(members)
        for recipe, members in itertools.groupby(groups, key=lambda group: group.recipe)
    }


def _by_seed(run: RunRecord) -> tuple[bool, int]:
    return (False, run.seed) if isinstance(run.seed, int) else (True, 0)


def _order(run: RunRecord) -> tuple[bool, str, int, int]:
    method, defaults = _split(run)[0], _BEFORE_IT_WAS_A_SETTING
    options = sum(method[name] != defaults[name] for name in method.keys() & defaults.keys())
    return run.method != "bp", run.method, run.num_stages, options


def _first_colour(groups: Sequence[Sequence[RunRecord]]) -> int:
    """The first one, grey, is for backpropagation alone."""
    return int(bool(groups) and groups[0][0].method != "bp")


def _tell_methods_apart(methods: Sequence[Settings]) -> dict[str, str]:
    names = [
        method_name(method["method"], method["stages"], live=method.get("weights") == "live")
        for method in methods
    ]
    return tell_apart(methods, names)


def _settings(run: RunRecord) -> dict[str, Any]:
    foreign = foreign_options(run.method)  # their values mean nothing here
    own = {key: value for key, value in run.config.items() if key not in foreign}
    settings = {**_BEFORE_IT_WAS_A_SETTING, **own}
    return {key: settings[key] for key in settings if key not in _NO_PART_OF_THE_RECIPE}


def _split(run: RunRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the method, and all others."""
    settings = _settings(run)
    method = {key: value for key, value in settings.items() if key in _METHOD_AXES}
    return method, {key: value for key, value in settings.items() if key not in _METHOD_AXES}
