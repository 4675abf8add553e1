"""What a contest is: a workload, the contestants, and how long each of them runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from delaygrad.errors import ConfigError

WorkloadName: TypeAlias = Literal["resnet8", "resnet56", "resnet110", "gpt25m", "mlp", "sleep"]

_LEAST = {
    "rounds": 1,
    "stages": 1,
    "threads": 1,
    "iterations": 1,
    "boundary_bytes": 4,
    "batch_size": 1,
}
_OF_SLEEPERS = (
    "forward_s", "backward_s", "boundary_bytes", "stage_forward_s", "stage_backward_s",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ContestConfig:
    """The contestants, their workload, and how long they run.

    Example:
        >>> ContestConfig(workload="mlp", rounds=0).check()
        Traceback (most recent call last):
        ...
        delaygrad.errors.ConfigError: rounds is out of range (rounds: 0); use at least 1
    """

    workload: WorkloadName = "resnet56"
    """What all contestants train; sleep: stages that sleep instead of computing."""
    model: str = ""
    """Your own network instead: PACKAGE.MODULE:FUNCTION returns a torch.nn.Module; with --data."""
    data: str = ""
    """The data of your own network: PACKAGE.MODULE:FUNCTION returns a delaygrad.data.DataSource."""
    batch_size: int | None = None
    """Samples in a batch of your own data (default 32)."""
    stages: int = 2
    """K: worker processes, one stage each."""
    contestants: tuple[str, ...] = ()
    """Names (bp, bp-all, bp-compile-all, gpipe-m4, 1f1b-m8, interleaved-m4, zb-m4, zbv-m4, ddp,
    ddg, ddg-slack1, ddg-bf16, ceiling, ...); by default all that fit the workload."""
    rounds: int = 5
    """Turns of each contestant."""
    turn_s: float = 10.0
    """Approximate seconds of a turn; sets the iterations per turn of each contestant."""
    iterations: int | None = None
    """Iterations per turn, for every contestant, instead of --turn-s."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute; with cuda, every rank has a GPU of its own."""
    threads: int = 1
    """Threads of each worker process; contestants named -all take every core in one process."""
    cuts: tuple[str, ...] = ()
    """First layer of each stage but the first; by default the cuts that balance measured time."""
    link: str = "loopback"
    """A description of the link, for the results; it does not slow the link down."""
    forward_s: float | None = None
    """sleep: seconds that a stage's forward takes for a batch (default 0.03)."""
    backward_s: float | None = None
    """sleep: seconds that a stage's backward takes for a batch (default 0.06)."""
    stage_forward_s: tuple[float, ...] = ()
    """sleep: seconds of each stage's forward, if they differ; replaces --forward-s."""
    stage_backward_s: tuple[float, ...] = ()
    """sleep: seconds of each stage's backward, if they differ; replaces --backward-s."""
    boundary_bytes: int | None = None
    """sleep: bytes of the activation between two stages (default 1024)."""
    smoke: bool = False
    """Shrink the network and take few iterations: shows that everything runs, measures nothing."""
    timeout_s: float = 300.0
    """Seconds that a contestant waits for another rank before it fails."""

    def check(self) -> None:
        """Raise ConfigError if a setting is out of range or without effect."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            _require(value is None or value >= least, name, value, f"use at least {least}")
        for name in ("turn_s", "timeout_s", "forward_s", "backward_s"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, value, "use more than 0 seconds")
        self._check_stage_times()
        self._check_own_network()
        for name in _OF_SLEEPERS if self.workload != "sleep" else ():
            if (value := getattr(self, name)) not in (None, ()):
                raise ConfigError(
                    f"{name} is for sleeping stages ({name}: {value}, workload: {self.workload}); "
                    "leave it out or set --workload sleep"
                )
        if self.cuts and len(self.cuts) != self.stages - 1:
            raise ConfigError(
                f"cuts do not fit the stages (cuts: {len(self.cuts)}, stages: {self.stages}); "
                f"give {self.stages - 1} names, or none"
            )
        if len(set(self.contestants)) < len(self.contestants):
            raise ConfigError(f"a contestant is named twice ({', '.join(self.contestants)})")

    def _check_own_network(self) -> None:
        own = {"model": self.model, "data": self.data}
        if any(own.values()) or self.batch_size is not None:
            for name, function in own.items():
                if ":" not in function:
                    raise ConfigError(
                        f"your own network needs --model and --data, each PACKAGE.MODULE:FUNCTION "
                        f"({name}: {function or 'not given'}); give both, or a --workload"
                    )
            _require(not self.smoke, "smoke", True, "it shrinks a --workload; leave it out")

    def _check_stage_times(self) -> None:
        forward_s, backward_s = self.stage_forward_s, self.stage_backward_s
        positive = all(0 < seconds < math.inf for seconds in (*forward_s, *backward_s))
        given = [*forward_s, *backward_s]
        _require(positive, "a stage's seconds", given, "use more than 0, finite")
        if {len(forward_s), len(backward_s)} not in ({0}, {self.stages}):
            raise ConfigError(
                f"stage times do not fit the stages (stage_forward_s: {len(forward_s)}, "
                f"stage_backward_s: {len(backward_s)}, stages: {self.stages}); give both a number "
                "for each stage, or neither"
            )
        if forward_s and (self.forward_s or self.backward_s):
            raise ConfigError(
                "stages sleep either alike (forward_s, backward_s) or each its own time "
                "(stage_forward_s, stage_backward_s); leave two of them out"
            )


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is out of range ({name}: {value}); {remedy}")
