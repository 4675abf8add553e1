"""A target that measures throughput: contests against backpropagation, for several K."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from delaygrad.bench.config import ContestConfig, WorkloadName
from delaygrad.errors import ConfigError
from delaygrad.reproduce.header import Header

BASELINE = "bp"


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The same contest for one or several K.

    Attributes:
        workload: of ``delaygrad bench``.
        stages: K; each needs as many cores or GPUs, unless the stages sleep.
        how: computing: stages that train; sleeping: stages that sleep as long as those of the
            workload were measured to compute (or, for workload sleep, as long as said below), so
            that schedule and transport alone are measured, and K may exceed the cores.
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


@dataclass(frozen=True, kw_only=True)
class SpeedCase:
    """A contest with one K.

    Attributes:
        contest: with this K only.
        num_stages: K.
    """

    contest: Contest
    num_stages: int

    @property
    def name(self) -> str:
        """What its results are kept under."""
        return f"{self.contest.workload}-{self.contest.how}-k{self.num_stages}"

    def settings(self) -> dict[str, Any]:
        """Return what decides the measurement, in plain values."""
        values = {**vars(self.contest), "stages": self.num_stages}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def config(self, **more: Any) -> ContestConfig:
        """Return the contest as ``delaygrad bench`` takes it."""
        contest = self.contest
        return ContestConfig(
            workload="sleep" if contest.how == "sleeping" else contest.workload,
            stages=self.num_stages,
            contestants=contest.contestants,
            rounds=contest.rounds,
            turn_s=contest.turn_s,
            iterations=contest.iterations,
            device=contest.device,
            smoke=contest.small and contest.how == "computing",
            forward_s=contest.forward_s,
            backward_s=contest.backward_s,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class SpeedScale:
    """How much is measured.

    Attributes:
        about: in words: what differs from the paper, and about how long it takes.
        contests: in order.
    """

    about: str
    contests: tuple[Contest, ...]

    def cases(self) -> Iterator[SpeedCase]:
        """List the contests, one for each K."""
        for contest in self.contests:
            for num_stages in contest.stages:
                one = replace(contest, stages=(num_stages,))
                yield SpeedCase(contest=one, num_stages=num_stages)


@dataclass(frozen=True, kw_only=True)
class SpeedTarget(Header):
    """What a ``target.toml`` of kind speed says.

    Attributes:
        scales: by name.
    """

    scales: dict[str, SpeedScale]

    def check(self, place: str) -> None:
        """Check what settings mean together.

        Raises:
            ConfigError: a contest is not possible.
        """
        # Imported here: torch's rivals take seconds to import, and other targets do without them.
        from delaygrad.bench.catalogue import entry

        for scale_name, scale in self.scales.items():
            where = f"{place}: scales.{scale_name}"
            names = [case.name for case in scale.cases()]
            for case in scale.cases():
                contest = case.contest
                if names.count(case.name) > 1:
                    raise ConfigError(f"two contests are the same in {where} ({case.name})")
                if BASELINE not in contest.contestants or len(contest.contestants) < 2:
                    raise ConfigError(
                        f"a contest needs {BASELINE} and somebody else in {where} "
                        f"(contestants: {', '.join(contest.contestants)})"
                    )
                if contest.workload == "sleep" and contest.how != "sleeping":
                    raise ConfigError(f'workload sleep needs how = "sleeping" in {where}')
                if contest.how == "sleeping" and contest.device != "cpu":
                    raise ConfigError(f"sleeping stages need no device in {where}; leave it out")
                for name in contest.contestants:
                    entry(name)
                case.config().check()
