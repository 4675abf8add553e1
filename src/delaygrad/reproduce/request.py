"""What to reproduce, at which scale, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from delaygrad.errors import ConfigError
from delaygrad.reproduce.plan import PlannedRun, planned_runs
from delaygrad.reproduce.target import ScaleName, Target, find_targets
from delaygrad.reproduce.training_target import TrainingTarget


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What to reproduce, at which scale, and where.

    Attributes:
        paper: the first part of the names of its targets' folders.
        targets: by name; none: all that have the scale.
        scale: by name.
        data_dir: the data, or a folder with a folder for each data set.
        experiments: the folder with the targets.
        output: folder for the runs, tables and figures; None: reproduced/<paper>.
        workers: runs at a time; None: as many as cores, or GPUs.
        run: False: put together what is there, and start nothing.
        publish: copy what came out beside the targets.
        page: write everything into this file too, as one HTML page.
    """

    paper: str
    targets: tuple[str, ...] = ()
    scale: ScaleName = "smoke"
    data_dir: Path | None = None
    experiments: Path = Path("experiments")
    output: Path | None = None
    workers: int | None = None
    run: bool = True
    publish: bool = False
    page: Path | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers must be at least 1 (workers: {self.workers})")
        if self.page is not None and self.page.is_dir():
            raise ConfigError(f"the page is to be a file, and this is a folder ({self.page})")

    def folder(self, target: Target, scale: str | None = None) -> Path:
        """Return the folder of a target's results."""
        output = self.output or Path("reproduced", self.paper)
        return output / target.name / (scale or self.scale)

    def found_targets(self) -> list[Target]:
        """Return the targets that have the scale.

        Raises:
            ConfigError: a target or the scale does not exist, or a file is wrong.
        """
        found = find_targets(self.experiments, self.paper, self.targets)
        having = [target for target in found if self.scale in target.content.scales]
        lacking = [target.name for target in found if target not in having]
        if not having or (self.targets and lacking):
            scales = sorted({name for target in found for name in target.content.scales})
            raise ConfigError(
                f"no such scale (scale: {self.scale}, targets: {', '.join(lacking)}); known: "
                f"{', '.join(scales)}"
            )
        return having

    def runs_of(self, target: Target, scale: str | None = None) -> list[PlannedRun]:
        """Return the planned runs of a target, [] unless it trains.

        Raises:
            ConfigError: a setting in the target's file is wrong.
        """
        if not isinstance(target.content, TrainingTarget):
            return []
        scale = scale or self.scale
        return planned_runs(target, scale, self.folder(target, scale), self.data_dir)
