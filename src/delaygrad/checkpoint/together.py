"""Checkpoints that the ranks of a run write and choose together.

What fails on one rank fails on all, with the same error: nobody waits for a rank that has given up.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from delaygrad.checkpoint import files
from delaygrad.errors import CheckpointError, DamagedCheckpointError

Share: TypeAlias = Callable[[Any], list[Any]]
"""Gives every rank the values of all, in the order of ranks; all ranks call it.

The values are of what JSON knows.
"""


@dataclass(frozen=True, kw_only=True)
class Newest:
    """The newest checkpoint that all ranks have and that is sound.

    Attributes:
        iteration: of the checkpoint.
        about: what was written with its states.
        rejected: what is wrong with the newer ones, by iteration; they are set aside.
    """

    iteration: int
    about: dict[str, Any]
    rejected: dict[int, str]

    def notes(self, checkpoints: Path) -> list[str]:
        """Say what the user should know."""
        return [
            f"{problem}; continuing from iteration {self.iteration}, the damaged checkpoint is "
            f"kept as {files.path_of(checkpoints, iteration).name}.damaged"
            for iteration, problem in self.rejected.items()
        ]


def write(
    checkpoints: Path,
    iteration: int,
    states: Mapping[int, dict[str, Any]],
    share: Share,
    *,
    about: dict[str, Any] | None = None,
    keep: int,
) -> None:
    """Write a checkpoint, and drop all but the newest; all ranks call it.

    It replaces one of the same iteration. Until it is whole on every disk, those before stay. If a
    rank cannot write, all ranks raise. ``about`` is alike on all ranks, which may share the folder
    or have one each; ``keep``: how many checkpoints stay.
    """
    final, former = files.path_of(checkpoints, iteration), list[Path | None]()
    replaces = final.exists()
    is_ours = replaces and all(_look(checkpoints, iteration, k)[0] == "sound" for k in states)

    def write_stages() -> None:
        for k, state in states.items():
            files.write_stage(checkpoints, iteration, k, state, about)

    if any(all_do(share, write_stages, replaces)):
        all_do(share, lambda: former.append(files.set_aside(final)))
    all_do(share, lambda: files.finish(checkpoints, iteration))
    files.prune(checkpoints, keep, iteration)
    for path in filter(None, former):
        if is_ours:
            shutil.rmtree(path, ignore_errors=True)


def find_newest(
    checkpoints: Path, stages: Iterable[int], share: Share, *, strict: bool = False
) -> Newest | None:
    """Choose the newest checkpoint that is sound for every rank; all ranks call it.

    Damaged ones that are newer are set aside, or, if strict, an error. ``stages`` are those whose
    files this rank answers for.

    Returns:
        None if no rank has a checkpoint.

    Raises:
        CheckpointError: none is sound, or the ranks have none in common.
    """
    stages, rejected = list(stages), dict[int, str]()
    found = [set(of_rank) for of_rank in share(files.find(checkpoints))]
    if not any(found):
        return None
    for iteration in sorted(set.intersection(*found), reverse=True):
        about, problem = _examine(share, checkpoints, iteration, stages)
        if problem is None:
            for damaged in rejected:
                files.set_aside(files.path_of(checkpoints, damaged))
            return Newest(iteration=iteration, about=about, rejected=rejected)
        rejected[iteration] = problem
        if strict:
            raise CheckpointError(f"{problem}; without --strict, the checkpoint before is taken")
    raise CheckpointError(
        f"no checkpoint is sound ({'; '.join(rejected.values())}); train again"
        if rejected
        else "the hosts have no checkpoint in common; start the run again"
    )


def all_do(share: Share, act: Callable[[], object], value: Any = None) -> list[Any]:
    """Act on every rank; return all values. A CheckpointError of one rank is raised on all."""
    problem = None
    try:
        act()
    except CheckpointError as error:
        problem = str(error)
    told = share([problem, value])
    for of_rank, _ in told:
        if of_rank is not None:
            raise CheckpointError(of_rank)
    return [value for _, value in told]


def _examine(
    share: Share, checkpoints: Path, iteration: int, stages: list[int]
) -> tuple[dict[str, Any], str | None]:
    """Read what a checkpoint says of its run, and say what is damaged; the same on all ranks."""
    looks = share([_look(checkpoints, iteration, stage) for stage in stages])
    everywhere = [one for of_rank in looks for one in of_rank]
    for kind, told in everywhere:
        if kind == "refused":
            raise CheckpointError(told)
    damage = [told for kind, told in everywhere if kind == "damaged"]
    if damage:
        return {}, damage[0]
    runs = [{**told, "stage": None} for _, told in everywhere]
    if any(run != runs[0] for run in runs):
        folder = files.path_of(checkpoints, iteration)
        return {}, f"the files of a checkpoint are of different runs ({folder})"
    return runs[0], None


def _look(checkpoints: Path, iteration: int, stage: int) -> tuple[str, Any]:
    try:
        return "sound", files.read_about(checkpoints, iteration, stage)
    except DamagedCheckpointError as error:
        return "damaged", str(error)
    except CheckpointError as error:
        return "refused", str(error)
