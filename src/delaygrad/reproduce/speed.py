"""A target that measures throughput: contests against backpropagation, for several K."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from delaygrad.bench import run_contest
from delaygrad.bench.config import ContestConfig, WorkloadName
from delaygrad.bench.workload import load_workload
from delaygrad.errors import ConfigError
from delaygrad.methods import BP
from delaygrad.planning import plan
from delaygrad.records.spread import MISSING, quartiles_text
from delaygrad.reproduce.measured import MeasuredTarget, Measurement
from delaygrad.reproduce.target import FILE, Findings, Published, Row, Scale, Sources, text_table
from delaygrad.results.bars import Bar, bar_panel, share_panel
from delaygrad.results.figure import Panel, colour
from delaygrad.results.group import BASELINE

_HEADINGS = (
    "workload", "stages", "K", "method", "speed-up (quartiles)", "ms per iteration", "ms of BP",
    "T_F + T_B / K would be", "slowest stage sends and waits", "published",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SpeedLine:
    """The same contest for one or several K.

    Attributes:
        workload: of ``delaygrad bench``.
        stages: K; each needs as many cores or GPUs, unless the stages sleep.
        how: computing: stages that train; sleeping: stages that sleep as long as those of the
            workload were measured to compute (workload sleep: as long as said below), so that
            only schedule and transport are measured, and K may exceed the cores.
        contestants: backpropagation and at least one other, by name.
        rounds: turns of each contestant.
        turn_s: seconds of a turn, about.
        iterations: of a turn, instead.
        device: where computing stages compute.
        small: shrink the network: shows that everything runs, measures nothing.
        forward_s: seconds that a sleeping stage takes; workload sleep only.
        backward_s: likewise.
    """

    workload: WorkloadName
    stages: tuple[int, ...]
    how: Literal["computing", "sleeping"]
    contestants: tuple[str, ...] = (BASELINE, "ddg")
    rounds: int = 5
    turn_s: float = 10.0
    iterations: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    small: bool = False
    forward_s: float | None = None
    backward_s: float | None = None

    @property
    def name(self) -> str:
        """What the results of one K are kept under."""
        return f"{self.workload}-{self.how}-k{self.stages[0]}"

    def settings(self) -> dict[str, Any]:
        """Return what decides the measurement of one K, in plain values."""
        values = {**vars(self), "stages": self.stages[0]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def config(self, **more: Any) -> ContestConfig:
        """Return the contest of one K as ``delaygrad bench`` takes it."""
        names = (
            "contestants", "rounds", "turn_s", "iterations", "device", "forward_s", "backward_s",
        )  # fmt: skip
        return ContestConfig(
            workload="sleep" if self.how == "sleeping" else self.workload,
            stages=self.stages[0],
            smoke=self.small and self.how == "computing",
            **{name: getattr(self, name) for name in names},
            **more,
        )

    def check(self, place: str) -> None:
        """Raise ConfigError if settings contradict each other, or a contestant is unknown."""
        # Imported here: torch's rivals take seconds to import, and other targets do without them.
        from delaygrad.bench.catalogue import entry

        if BASELINE not in self.contestants or len(self.contestants) < 2:
            raise ConfigError(
                f"a contest needs {BASELINE} and another contestant in {place} "
                f"(contestants: {', '.join(self.contestants)})"
            )
        if self.workload == "sleep" and self.how != "sleeping":
            raise ConfigError(f'workload sleep needs how = "sleeping" in {place}')
        if self.how == "sleeping" and self.device != "cpu":
            raise ConfigError(f"sleeping stages need no device in {place}; leave it out")
        for name in self.contestants:
            entry(name)
        self.config().check()


@dataclass(frozen=True, kw_only=True)
class SpeedScale(Scale):
    """The contests of a scale, in order."""

    contests: tuple[SpeedLine, ...]

    def each(self) -> list[SpeedLine]:
        """List the contests with one K."""
        return [replace(one, stages=(k,)) for one in self.contests for k in one.stages]


@dataclass(frozen=True, kw_only=True)
class SpeedTarget(MeasuredTarget):
    """What a ``target.toml`` of kind speed says; ``scales`` by name."""

    scales: dict[str, SpeedScale]

    def plan(self, scale: str, folder: Path, data_dir: Path | None = None) -> list[Measurement]:
        """List the contests; see ``Target``."""
        found = []
        for one in self.scales[scale].each():
            one.check(f"{self.label}/{FILE}: scales.{scale}")
            row = {"workload": one.workload, "how": one.how, "stages": one.stages[0]}
            found.append(
                Measurement(
                    name=one.name,
                    folder=folder,
                    settings=one.settings(),
                    row=row,
                    measure=partial(_hold, one),
                )
            )
        return found

    def rows(self, measurement: Measurement, found: dict[str, Any]) -> list[dict[str, Any]]:
        """Return for each contestant but backpropagation:

        speedup               median and quartiles of its throughput over backpropagation's
        iteration_s           seconds, median
        baseline_s            of backpropagation, likewise
        stage_seconds         per iteration, of each stage, for each activity
        communication_share   of the iteration, what the slowest stage spends on sending and waiting
        paper_rule            the speed-up that T_F + T_B / K gives with the times of these stages
        smoke                 whether the network was shrunk
        """
        contest = found["contest"]
        records = {record["name"]: record for record in contest["contestants"]}
        baseline = records[BASELINE]
        rows = []
        for name, record in records.items():
            row = {**measurement.row, "contestant": name, "title": record["title"]}
            reason = record.get("does_not_run") or baseline.get("does_not_run")
            if reason is not None:
                rows.append({**row, "does_not_run": reason})
            elif name != BASELINE:
                stages, iteration_s = record["stages"], record["iteration"]["median"]
                row |= {
                    "speedup": record["throughput_against"]["baseline"],
                    "iteration_s": iteration_s,
                    "baseline_s": baseline["iteration"]["median"],
                    "stage_seconds": stages,
                    "communication_share": communication_share(stages, iteration_s),
                    "paper_rule": paper_rule(stages),
                    "smoke": contest["smoke"],
                }
                rows.append(row)
        return rows

    def findings(self, planned: Sequence[Measurement], speed_rows: Sequence[Row] = ()) -> Findings:
        """Put speed-ups, measured and published, and what each stage does together."""
        rows, sources = self.measured_rows(planned), Sources()
        cells = [_cells(row, self.published, sources) for row in rows]
        notes = [_EXPLAINED, *([_SHRUNK] if any(row.get("smoke") for row in rows) else [])]
        drawn = [row for row in rows if "speedup" in row]
        shares = {
            f"{row['workload']}, {row['how']}, K={row['stages']}, stage {k}": {
                activity: seconds / row["iteration_s"] for activity, seconds in stage.items()
            }
            for row in drawn
            for k, stage in enumerate(row["stage_seconds"])
        }
        panels = [
            _speed_panel(drawn, self.published), share_panel(shares, "share of iteration (%)"),
        ]  # fmt: skip
        return Findings(
            results={"rows": rows},
            tables=(text_table("", _HEADINGS, cells),),
            notes=(*notes, *sources.notes()),
            figures={"speed": {"": panels}} if drawn else {},
        )


_EXPLAINED = (
    "Speed-up: throughput over that of backpropagation in one process with one thread; "
    "median and quartiles of the rounds. Sleeping stages sleep as long as the stages were "
    "measured to compute: they show schedule and transport, not computation in parallel."
)
_SHRUNK = "The networks were shrunk: the figures mean nothing."


def _cells(row: Row, published: Sequence[Published], sources: Sources) -> list[str]:
    names = [row["workload"], row["how"], str(row["stages"]), row["title"]]
    own = [n for n in published if n.stages == row["stages"] and n.quantity == "speedup"]
    quoted = sources.quote([n for n in own if n.problem in ("", row["workload"])])
    if "does_not_run" in row:
        return [*names, row["does_not_run"], *[MISSING] * 4, quoted]
    share, rule = row["communication_share"], row["paper_rule"]
    return [
        *names,
        quartiles_text(row["speedup"]),
        f"{1e3 * row['iteration_s']:.1f}",
        f"{1e3 * row['baseline_s']:.1f}",
        MISSING if rule is None else f"{rule:.2f}",
        MISSING if share is None else f"{share:.1%}",
        quoted,
    ]


def _speed_panel(rows: Sequence[Row], published: Sequence[Published]) -> Panel:
    bars = []
    for row in rows:
        middle, stages = row["speedup"]["median"], row["stages"]
        own = [n for n in published if n.quantity == "speedup" and n.stages == stages]
        markers = {n.who: n.value for n in own if n.problem in ("", row["workload"])}
        if row["paper_rule"] is not None:
            markers = {"T_F + T_B / K": row["paper_rule"], **markers}
        bars.append(
            Bar(
                label=f"{row['workload']}, {row['how']}, K={stages}",
                parts={row["how"]: middle},
                ends=tuple(row["speedup"]["quartiles"]),
                markers=markers,
                value=f"{middle:.2f}",
            )
        )
    looks = {how: {"facecolor": colour(n)} for n, how in enumerate(("computing", "sleeping"), 1)}
    return bar_panel(bars, "throughput / BP in one process", looks)


def _hold(contest: SpeedLine) -> dict[str, Any]:
    more, times = {}, None
    if contest.how == "sleeping" and contest.workload != "sleep":
        times = stage_times(contest)
        stages = times["stages"]
        more = {
            "stage_forward_s": tuple(stage["forward_s"] for stage in stages),
            "stage_backward_s": tuple(s["backward_s"] + s["update_s"] for s in stages),
            "boundary_bytes": times["boundary_bytes"],
        }
    return {"stage_times": times, "contest": run_contest(contest.config(**more), quiet=True)}


def stage_times(contest: SpeedLine) -> dict[str, Any]:
    """Measure the stages of a workload, cut as the planner cuts, alone in this process.

    Returns:
        cuts; stages: seconds of forward, backward and update of each; boundary_bytes: of the
        largest boundary.
    """
    workload = load_workload(ContestConfig(workload=contest.workload, smoke=contest.small))
    inputs, targets = workload.batch()
    (stages,) = plan(
        workload.model(),
        inputs,
        num_stages=contest.stages[0],
        method=BP(),
        loss=lambda outputs: workload.loss_fn(outputs, targets),
        make_optimizer=workload.make_optimizer,
    ).stages
    boundaries = [stage.output_bytes for stage in stages[:-1]]
    return {
        "cuts": [stage.name for stage in stages[1:]],
        "stages": [stage.times() for stage in stages],
        "boundary_bytes": max(boundaries, default=0) or None,
    }


def communication_share(stages: Sequence[dict[str, float]], iteration_s: float) -> float | None:
    """Return the part of the iteration that the slowest stage spends on sending and waiting.

    The others also wait because they are faster.

    Example:
        >>> fast = {"forward": 1.0, "backward": 1.0, "update": 0.0, "send": 0.0, "wait": 3.0}
        >>> slow = {"forward": 1.0, "backward": 3.0, "update": 0.0, "send": 0.5, "wait": 0.5}
        >>> communication_share([fast, slow], 5.0)
        0.2
    """
    if not stages:
        return None
    slowest = max(stages, key=lambda s: s["forward"] + s["backward"] + s["update"])
    return round((slowest["send"] + slowest["wait"]) / iteration_s, 4)


def paper_rule(stages: Sequence[dict[str, float]]) -> float | None:
    """Return the speed-up that the paper's accounting gives: (T_F + T_B) / (T_F + T_B / K).

    Example:
        >>> stage = {"forward": 1.0, "backward": 2.0, "update": 0.0}
        >>> paper_rule([stage, stage])
        1.5
    """
    if not stages:
        return None
    forward_s = sum(stage["forward"] for stage in stages)
    backward_s = sum(stage["backward"] + stage["update"] for stage in stages)
    return round((forward_s + backward_s) / (forward_s + backward_s / len(stages)), 4)


def speed_ups(rows: Iterable[Row], model: str) -> dict[int, float]:
    """Pick DDG's speed-ups of a network by K, of computing stages rather than sleeping ones.

    Example:
        >>> row = {"workload": "resnet8", "stages": 2, "contestant": "ddg", "smoke": False}
        >>> speed_ups([{**row, "how": "computing", "speedup": {"median": 1.8}}], "resnet8")
        {2: 1.8}
    """
    return {
        row["stages"]: float(row["speedup"]["median"])
        for how in ("sleeping", "computing")
        for row in rows
        if (row["workload"], row["how"], row["contestant"]) == (model, how, "ddg")
        and "speedup" in row
        and not row["smoke"]
    }
