"""What a contest is: a workload, the contestants, and how long each of them runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from delaygrad.errors import ConfigError
from delaygrad.training.component import Component
from delaygrad.training.ranges import Count, Few, Positive

WorkloadName: TypeAlias = Literal["resnet8", "resnet56", "resnet110", "gpt25m", "mlp", "sleep"]

_OF_SLEEPERS = (
    "forward_s", "backward_s", "boundary_bytes", "stage_forward_s", "stage_backward_s",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ContestConfig(Component):
    """The contestants, their workload, and how long they run.

    Example:
        >>> ContestConfig(workload="mlp", rounds=0)
        Traceback (most recent call last):
        ...
        delaygrad.errors.ConfigError: wrong value in config (rounds: 0; expected int >= 1)
    """

    workload: WorkloadName = "resnet56"
    """What all contestants train; sleep: stages that sleep instead of computing."""
    model: str = ""
    """Your own network instead: PACKAGE.MODULE:FUNCTION returns a torch.nn.Module; with --data."""
    data: str = ""
    """The data of your own network: PACKAGE.MODULE:FUNCTION returns a delaygrad.data.DataSource."""
    batch_size: Count | None = None
    """Samples in a batch of your own data (default 32)."""
    stages: Few = 2
    """K: worker processes, one stage each."""
    contestants: tuple[str, ...] = ()
    """Names (bp, bp-all, bp-compile-all, gpipe-m4, 1f1b-m8, interleaved-m4, zb-m4, zbv-m4, ddp,
    ddg, ddg-slack1, ddg-bf16, ceiling, ...); by default all that fit the workload."""
    rounds: Count = 5
    """Turns of each contestant."""
    turn_s: Positive = 10.0
    """Approximate seconds of a turn; sets the iterations per turn of each contestant."""
    iterations: Count | None = None
    """Iterations per turn, for every contestant, instead of --turn-s."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute; with cuda, every rank has a GPU of its own."""
    threads: Few = 1
    """Threads of each worker process; contestants named -all take every core in one process."""
    cuts: tuple[str, ...] = ()
    """First layer of each stage but the first; by default the cuts that balance measured time."""
    link: str = "loopback"
    """A description of the link, for the results; it does not slow the link down."""
    forward_s: Positive | None = None
    """sleep: seconds that a stage's forward takes for a batch (default 0.03)."""
    backward_s: Positive | None = None
    """sleep: seconds that a stage's backward takes for a batch (default 0.06)."""
    stage_forward_s: tuple[Positive, ...] = ()
    """sleep: seconds of each stage's forward, if they differ; replaces --forward-s."""
    stage_backward_s: tuple[Positive, ...] = ()
    """sleep: seconds of each stage's backward, if they differ; replaces --backward-s."""
    boundary_bytes: Annotated[int, Meta(ge=4)] | None = None
    """sleep: bytes of the activation between two stages (default 1024)."""
    smoke: bool = False
    """Shrink the network and take few iterations: shows that everything runs, measures nothing."""
    timeout_s: Positive = 300.0
    """Seconds that a contestant waits for another rank before it fails."""

    def check(self) -> None:
        """Raise ConfigError if settings contradict each other, or one is without effect."""
        own = {"model": self.model, "data": self.data}
        if any(own.values()) or self.batch_size is not None:
            for name, function in own.items():
                if ":" not in function:
                    raise ConfigError(
                        f"your own network needs --model and --data, each PACKAGE.MODULE:FUNCTION "
                        f"({name}: {function or 'not given'}); give both, or a --workload"
                    )
            if self.smoke:
                raise ConfigError("smoke shrinks a --workload, not your own network; leave it out")
        for name in _OF_SLEEPERS if self.workload != "sleep" else ():
            if (value := getattr(self, name)) not in (None, ()):
                raise ConfigError(
                    f"{name} is for sleeping stages ({name}: {value}, workload: {self.workload}); "
                    "leave it out or set --workload sleep"
                )
        times = len(self.stage_forward_s), len(self.stage_backward_s)
        if set(times) not in ({0}, {self.stages}):
            raise ConfigError(
                f"stage times do not fit the stages (stage_forward_s: {times[0]}, "
                f"stage_backward_s: {times[1]}, stages: {self.stages}); give both a number for "
                "each stage, or neither"
            )
        if any(times) and (self.forward_s or self.backward_s):
            raise ConfigError(
                "stages sleep either alike (forward_s, backward_s) or each its own time "
                "(stage_forward_s, stage_backward_s); leave two of them out"
            )
        if self.cuts and len(self.cuts) != self.stages - 1:
            raise ConfigError(
                f"cuts do not fit the stages (cuts: {len(self.cuts)}, stages: {self.stages}); "
                f"give {self.stages - 1} names, or none"
            )
        if len(set(self.contestants)) < len(self.contestants):
            raise ConfigError(f"a contestant is named twice ({', '.join(self.contestants)})")
