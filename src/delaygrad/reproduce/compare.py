"""``compare``: methods against backpropagation at equal samples, and which of them to use.

A comparison is a target whose grid comes from the command line. The stages are measured once: their
times give the cuts, and predict an iteration of every method and of synchronous pipelines.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from delaygrad.plain_values import unknown
from delaygrad.reproduce.grid import Choice, PlannedRun, Series
from delaygrad.reproduce.paper import failed, put_together
from delaygrad.reproduce.stage_costs import LinkOptions, StageCosts, stage_costs
from delaygrad.reproduce.target import Findings, Row
from delaygrad.reproduce.training import TrainingScale, TrainingTarget
from delaygrad.results.group import BASELINE, RunGroup
from delaygrad.results.page import Figure, Page, Prose, Section, write_page
from delaygrad.results.time_to_loss import (
    DialPoint,
    best_baseline,
    dial_panels,
    predicted_axis,
    recommendation,
    target_loss,
    time_panel,
    time_table,
    times_to_loss,
)
from delaygrad.training.choices import (
    CHOICES,
    Data,
    Digits,
    Model,
    ResNet,
)
from delaygrad.training.component import Component, Config, defaults_of, options_of
from delaygrad.training.config import Length, TrainConfig
from delaygrad.training.optimizer_choices import SGD, Cosine, LRSchedule, Optimizer
from delaygrad.training.ranges import Count, CountOrNone, Few, Positive

SCALE = "compare"


@dataclass(frozen=True, kw_only=True)
class Grid(Component):
    """What is compared with backpropagation on one stage.

    Args:
        methods: names of methods, see ``train --help``; options follow after commas, such as
            ddg,slack=1.
        stages: K, one or several.
        micro_batches: M of the methods that have micro-batches, one or several; by default the
            method's own, or K where the method has none.
        lrs: learning rates, one or several; by default the optimizer's own.
        seeds: seeds, one or several.
        within: the loss to reach, as a fraction above the final one of backpropagation (of its
            worst seed).
    """

    methods: tuple[str, ...] = ("ddg", "lookahead")
    stages: tuple[Few, ...] = (4,)
    micro_batches: tuple[Few, ...] = ()
    lrs: tuple[Positive, ...] = ()
    seeds: tuple[Annotated[int, Meta(ge=0)], ...] = (0,)
    within: Annotated[float, Meta(ge=0, le=10)] = 0.02


@dataclass(frozen=True, kw_only=True)
class EveryRun(Length):
    """What is the same in every run.

    Args:
        runtime: with local, a run computes its stages in turn, and the seconds are predicted; with
            distributed, every stage has a process, and the seconds are measured.
        log_every: iterations per record of the training loss.
        checkpoint_every: iterations from one checkpoint to the next; 0: none.
    """

    log_every: Count = 10
    checkpoint_every: CountOrNone = 500


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """What is compared: a grid of methods on one network, data set and optimizer."""

    choices: ClassVar = {n: CHOICES[n] for n in ("data", "model", "optimizer", "lr_schedule")}

    grid: Grid = Grid()
    data: Data = Digits()
    model: Model = ResNet()
    optimizer: Optimizer = SGD()
    lr_schedule: LRSchedule = Cosine()
    run: EveryRun = EveryRun()
    link: LinkOptions = LinkOptions()

    def settings(self) -> dict[str, Any]:
        """Return what all runs have in common, as the flat form of a run has it."""
        aside = {*options_of(Grid), *options_of(LinkOptions)}
        return {name: v for name, v in self.to_json().items() if name not in aside}

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the grid, backpropagation first."""
        for text in dict.fromkeys((BASELINE, *self.grid.methods)):
            name, options = _parse(text)
            kind = CHOICES["method"].kinds()[name]
            for stages in self.grid.stages if name != BASELINE else (1,):
                counts: Sequence[int | None] = (None,)
                if "micro_batches" in options_of(kind) and "micro_batches" not in options:
                    default = defaults_of(kind)["micro_batches"]
                    required = default is None or default is dataclasses.MISSING
                    own = () if name == BASELINE else self.grid.micro_batches
                    counts = own or ((stages,) if required else (None,))
                for count in counts:
                    chosen = options if count is None else {"micro_batches": count, **options}
                    words = [_word(option, value) for option, value in chosen.items()]
                    line = {"method": name, "stages": [stages], "variant": "-".join(words)}
                    yield {**line, **chosen}


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """Read a method with its options.

    Example:
        >>> _parse("ddg,slack=1,weights=live")
        ('ddg', {'slack': 1, 'weights': 'live'})
    """
    name, *options = text.split(",")
    kinds = CHOICES["method"].kinds()
    if name not in kinds:
        raise unknown("method", name, kinds)
    found: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in options_of(kinds[name]):
            raise unknown(f"option of {name}", key, options_of(kinds[name]), label="option")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:  # a word needs no quotes
            found[key] = value
    return name, found


def _word(option: str, value: Any) -> str:
    """Write an option as part of a folder's name.

    Example:
        >>> _word("micro_batches", 4), _word("recompute", True)
        ('m4', 'recompute')
    """
    name = "m" if option == "micro_batches" else option.replace("_", "-")
    return name if value is True else f"{name}{value}"


@dataclass(frozen=True, kw_only=True)
class Comparison(TrainingTarget):
    """A grid from the command line.

    Attributes:
        costs: of the stages.
        within: the loss to reach, as a fraction above the final one of backpropagation.
        words: of the command.
    """

    costs: StageCosts
    within: float
    words: str

    @property
    def label(self) -> str:
        """What messages call it."""
        return "comparison"

    def command(self, scale: str) -> str:
        """The command that makes it."""
        return self.words

    def findings(self, planned: Sequence[PlannedRun], speed_rows: Sequence[Row] = ()) -> Findings:
        """Put the runs together, with the time to loss of each method first."""
        by_series = self.groups(planned)
        groups, seconds = list(by_series.values()), self._sample_s(planned, by_series)
        found = self.put_together(planned, lambda members: predicted_axis(members, seconds))
        loss = target_loss(groups, self.within)
        if loss is None:
            return dataclasses.replace(found, summary=_NO_VERDICT)
        batch_size = planned[0].config.run.batch_size
        counts = dict.fromkeys(series.stages for series in by_series if series.stages > 1)
        rivals = {
            f"{schedule} K={k}": {m: iteration_s / batch_size for m, iteration_s in by_m.items()}
            for k in counts
            for schedule, by_m in self.costs.synchronous_s(k, batch_size).items()
        }
        best = {
            f"synchronous {name} M={m}": by_m[m]
            for name, by_m in rivals.items()
            for m in sorted(by_m, key=lambda m: by_m[m])[:1]
        }
        times = times_to_loss(groups, seconds, best, loss)
        table, panel = time_table(times, loss), time_panel(times)
        panels = () if panel is None else (panel,)
        figure = Figure(panels=panels, caption="A method without a bar did not reach the loss.")
        section = Section("Time to loss", (table, figure, Prose(_EXPLAINED, note=True)))
        points = self._dial(by_series, seconds)
        dial = dial_panels(points, _final_loss(best_baseline(groups)), rivals)
        drawn = {"time-to-loss": panels, "dial": dial}
        sections = (section, Section("The dial M", (Figure(panels=dial, caption=_DIAL),)))
        verdict = {"loss": loss, "times": [one.to_json() for one in times]}
        return Findings(
            results={
                **found.results,
                "verdict": verdict,
                "dial": [point.to_json() for point in points],
                "synchronous_sample_s": rivals,
            },
            tables=(table, *found.tables),
            notes=(_EXPLAINED, *found.notes),
            figures={**{n: {"": one} for n, one in drawn.items() if one}, **found.figures},
            sections=(*sections[: 2 if dial else 1], *found.sections),
            summary=recommendation(times, loss),
        )

    def _dial(
        self, groups: Mapping[Series, RunGroup], seconds: Mapping[str, float]
    ) -> list[DialPoint]:
        """Return each method with micro-batches at each M, with its best recipe."""
        found: dict[tuple[str, int], DialPoint] = {}
        for series, group in groups.items():
            if series.method == BASELINE or not group.runs:
                continue
            words = [word for word in series.variant.split("-") if not re.fullmatch(r"m\d+", word)]
            point = DialPoint(
                name=dataclasses.replace(series, variant="-".join(words)).name,
                micro_batches=int(group.runs[0].config.get("micro_batches", 1)),
                loss=group.spread("train_loss"),
                sample_s=seconds.get(group.name),
            )
            key = (point.name, point.micro_batches)
            found[key] = min(found.get(key, point), point, key=_loss_of)
        return list(found.values())

    def _sample_s(
        self, planned: Sequence[PlannedRun], groups: Mapping[Series, RunGroup]
    ) -> dict[str, float]:
        """Return the seconds per sample of each method, measured or predicted, by its name."""
        found = {}
        for run in planned:
            method, series, settings = run.config.method.build(), run.series, run.config.run
            speed = groups[series].spread("samples_per_s")
            if settings.runtime == "distributed" and speed is not None:
                found[series.name] = 1 / speed.mean
            elif not method.error_gradient.is_local:  # whose synthesizers are not measured
                iteration_s = self.costs.iteration_s(method, series.stages)
                found[series.name] = iteration_s / settings.batch_size
        return found


def _final_loss(group: RunGroup | None) -> float | None:
    spread = None if group is None else group.spread("train_loss")
    return None if spread is None else spread.mean


def _loss_of(point: DialPoint) -> float:
    return math.inf if point.loss is None else point.loss.mean


_DIAL = (
    "Left: each method with its best recipe, against the best backpropagation; the band is one "
    "standard deviation over seeds. Right: in steady state; synchronous schedules are predicted."
)
_NO_VERDICT = (
    "No verdict: no run of backpropagation has finished with a training loss that has fallen."
)
_EXPLAINED = (
    "Time to loss: samples until the training loss is reached, times seconds per sample in steady "
    "state. Seconds are predicted for K devices like this one, unless every stage of the runs had "
    "a process; those of synchronous pipelines are always predicted. A synchronous pipeline needs "
    "the samples of backpropagation."
)


def compare(
    config: CompareConfig,
    output: Path,
    *,
    command: str = "",
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Make the runs of a grid that are missing, and put everything together.

    Args:
        config: the grid.
        output: folder for runs, results.json, table.md, figures and page.html.
        command: that asked for it, for the results.
        workers: runs at a time; None: as many as the cores or GPUs allow.
        quiet: show no progress.

    Returns:
        What results.json holds; ``summary`` says which method to use, ``verdict`` holds the times.

    Raises:
        ConfigError: a setting is wrong, or results with other settings are in the way.
        ReproductionError: runs have failed; everything else has been done.
    """
    lines = tuple(config.lines())
    rates = config.grid.lrs or (config.optimizer.lr,)
    costs = stage_costs(
        TrainConfig.from_json(config.settings()), config.link.link(), config.grid.stages, output
    )
    about = (
        f"backpropagation against {'; '.join(config.grid.methods)} with {config.optimizer.name}, "
        f"batches of {config.run.batch_size}, on the same samples"
    )
    target = Comparison(
        title=f"{config.model.name} on {config.data.name}: time to loss",
        kind="training",
        reference="",
        scales={SCALE: TrainingScale(about=about, lines=lines, seeds=config.grid.seeds)},
        recipes={f"lr{lr:g}": Choice(title=f"lr {lr:g}", settings={"lr": lr}) for lr in rates},
        settings={**config.settings(), "keep_checkpoints": 1},
        cuts={config.model.name: {str(k): costs.cuts(k) for k in config.grid.stages}},
        costs=costs,
        within=config.grid.within,
        words=command,
    )
    planned = target.plan(SCALE, output)
    failures = target.make(planned, workers, None if quiet else print)
    findings = target.findings(planned)
    results = put_together(target, SCALE, output, findings)
    lead = (findings.summary, f"{about[:1].upper()}{about[1:]}.")
    page = Page(title=target.title, lead=lead, sections=findings.sections, source=command)
    write_page(page, output / "page.html")
    if failures:
        raise failed(failures)
    return results
