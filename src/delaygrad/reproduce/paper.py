"""``reproduce``: the targets of a paper at a scale, from their files to tables, figures, a page."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from delaygrad.errors import ConfigError, ReproductionError
from delaygrad.plain_values import read, unknown
from delaygrad.reproduce.memory import MemoryTarget
from delaygrad.reproduce.publish import publish
from delaygrad.reproduce.speed import SpeedTarget
from delaygrad.reproduce.target import FILE, Failure, Findings, ScaleName, Target, markdown
from delaygrad.reproduce.training import TrainingTarget
from delaygrad.results.figure import write_png
from delaygrad.results.page import Block, Figure, Page, Prose, Section, write_page
from delaygrad.training import run_folder

_KINDS: dict[str, type[Target]] = {
    "training": TrainingTarget,
    "speed": SpeedTarget,
    "memory": MemoryTarget,
}
RESULTS, TABLE = "results.json", "table.md"
_MOST_LISTED = 5  # failed runs in one message


def find_targets(experiments: Path, paper: str, names: tuple[str, ...] = ()) -> list[Target]:
    """Find the targets of a paper; only those named, with or without the paper, if some are.

    A ConfigError says that there is none, not this one, or what is wrong with its file.
    """
    folders = {
        path.parent.name.removeprefix(f"{paper}-"): path.parent
        for path in sorted(experiments.glob(f"{paper}-*/{FILE}"))
    }
    if not folders:
        others = sorted({path.parent.name for path in experiments.glob(f"*/{FILE}")})
        found = f"found there: {', '.join(others)}; " if others else ""
        raise ConfigError(
            f"there is nothing to reproduce of this paper (paper: {paper}, looked for: "
            f"{experiments / f'{paper}-*' / FILE}); {found}run this in a checkout of the "
            "repository, or say where its targets are with --experiments FOLDER"
        )
    wanted = dict.fromkeys(name.removeprefix(f"{paper}-") for name in names) or folders
    for name in wanted:
        if name not in folders:
            raise unknown(f"target of {paper}", name, folders, label="target")
    return [load_target(folders[name], paper) for name in wanted]


def load_target(folder: Path, paper: str) -> Target:
    """Read a target's file; a ConfigError says what is wrong with it."""
    path = folder / FILE
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the target ({path}): {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"cannot parse the target ({path}): {error}") from error
    kind = _KINDS.get(str(values.get("kind")))
    if kind is None:
        raise unknown(f"kind in {path}", str(values.get("kind")), _KINDS, label="kind")
    target = read(kind, values, str(path), given={"folder": folder, "paper": paper})
    target.check()
    return target


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What to reproduce, at which scale, and where."""

    paper: str
    """The paper, such as huo2018."""
    target: tuple[str, ...] = ()
    """Some of its figures and tables, by name; by default all. See --list."""
    scale: ScaleName = "smoke"
    """smoke: about a minute, shows that everything runs; cpu: hours; gpu: needs a GPU."""
    data_dir: Path | None = None
    """The data: the files, or a folder for each data set (smoke needs none)."""
    experiments: Path = Path("experiments")
    """The folder with the targets."""
    output: Path | None = None
    """Folder for runs, tables and figures; by default reproduced/PAPER."""
    workers: int | None = None
    """Runs at a time; by default as many as CPU cores, or GPUs."""
    publish: bool = False
    """Copy tables, figures and records (without weights and paths) beside the targets."""
    page: Path | None = None
    """Also write everything into this file, as one HTML page."""
    run: bool = True
    """Make the missing runs. With --no-run, only make tables and figures of finished runs."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers must be at least 1 (workers: {self.workers})")
        if self.page is not None and self.page.is_dir():
            raise ConfigError(f"the page must be a file, and this is a folder ({self.page})")

    def folder(self, target: Target, scale: str | None = None) -> Path:
        """Return the folder of a target's results."""
        output = self.output or Path("reproduced", self.paper)
        return output / target.name / (scale or self.scale)

    def plan(self, target: Target, scale: str | None = None) -> Sequence[Any]:
        """List what a target makes."""
        scale = scale or self.scale
        return target.plan(scale, self.folder(target, scale), self.data_dir)

    def found_targets(self) -> list[Target]:
        """Return the targets that have the scale.

        Raises:
            ConfigError: a target or the scale does not exist, or a file is wrong.
        """
        found = find_targets(self.experiments, self.paper, self.target)
        having = [target for target in found if self.scale in target.scales]
        lacking = [target.name for target in found if target not in having]
        if not having or (self.target and lacking):
            scales = sorted({name for target in found for name in target.scales})
            raise ConfigError(
                f"no such scale (scale: {self.scale}, targets: {', '.join(lacking)}); known: "
                f"{', '.join(scales)}"
            )
        return having


def reproduce(request: Reproduction, *, quiet: bool = False) -> dict[str, dict[str, Any]]:
    """Make what is missing, and put everything together.

    Args:
        request: what, at which scale, and where.
        quiet: show no progress.

    Returns:
        By target what its ``results.json`` holds.

    Raises:
        ConfigError: a setting or a target is wrong, or results with other settings are in the way.
        ReproductionError: runs have failed; everything else has been done.
    """
    console = Console(stderr=True, quiet=quiet)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    targets = request.found_targets()
    plans = {target.name: request.plan(target) for target in targets}
    failures: list[Failure] = []
    kinds: list[type[Target]] = list(dict.fromkeys(map(type, targets)))
    for kind in kinds if request.run else ():
        own = [one for target in targets if type(target) is kind for one in plans[target.name]]
        failures += kind.make(own, request.workers, None if quiet else say)
    speed_rows = _speed_rows(request)
    results, sections = {}, []
    for target in targets:
        planned, folder = plans[target.name], request.folder(target)
        findings = target.findings(planned, speed_rows)
        results[target.name] = put_together(target, request.scale, folder, findings)
        if not findings.is_empty:
            sections.append(target_section(target, request.scale, findings))
        if request.publish and not findings.is_empty:
            say(f"published {publish(target, request.scale, folder, planned)}")
        elif request.publish:
            say(f"nothing to publish of {target.name}")
    if request.page is not None:
        say(f"wrote {write_page(_page(request.paper, sections), request.page)}")
    if failures:
        raise failed(failures)
    return results


def status(request: Reproduction) -> list[dict[str, Any]]:
    """Say for each target and scale how much there is to make, and how much is done.

    Returns:
        Rows of target, kind, scale, about, done and planned (runs, or measurements).
    """
    found = []
    for target in find_targets(request.experiments, request.paper, request.target):
        for name, scale in target.scales.items():
            planned = request.plan(target, name)
            row = {"target": target.name, "kind": target.kind, "scale": name, "about": scale.about}
            done = sum(one.is_done() for one in planned)
            found.append({**row, "done": done, "planned": len(planned)})
    return found


def put_together(target: Target, scale: str, folder: Path, findings: Findings) -> dict[str, Any]:
    """Write results.json, table.md and the figures of a target; return what results.json holds."""
    results = {
        "command": target.command(scale),
        "paper": target.paper,
        "target": target.name,
        "title": target.title,
        "reference": target.reference,
        "scale": scale,
        "about": target.scales[scale].about,
        "published": [vars(number).copy() for number in target.published],
        **({"summary": findings.summary} if findings.summary else {}),
        **findings.results,
    }
    head = (
        f"# {target.title}",
        findings.summary,
        target.reference,
        f"Scale `{scale}`: {results['about']}",
        f"    {results['command']}",
    )
    text = "\n\n".join([*filter(None, head), *map(markdown, findings.tables), *findings.notes])
    with run_folder.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(folder / RESULTS, results)
        (folder / TABLE).write_text(f"{text}\n", encoding="utf-8")
    for name, rows in findings.figures.items():
        write_png(rows, folder / f"{name}.png", f"{target.title}\n{scale}: {results['about']}")
    return results


def _speed_rows(request: Reproduction) -> list[dict[str, Any]]:
    """Return what targets of kind speed have measured at this scale, now or earlier."""
    return [
        row
        for target in find_targets(request.experiments, request.paper)
        if isinstance(target, SpeedTarget) and request.scale in target.scales
        for row in target.measured_rows(request.plan(target))
    ]


def _page(paper: str, sections: Sequence[Section]) -> Page:
    return Page(
        title=f"{paper}, reproduced",
        lead=(
            "One command made every table and figure below from records. The records name their "
            "machine. Published numbers stand beside ours with their source; recalled ones are "
            "marked.",
        ),
        sections=tuple(sections),
        source=f"Made by delaygrad reproduce {paper} from its records.",
    )


def target_section(target: Target, scale: str, findings: Findings) -> Section:
    """Compose the section of a target on the page of its paper."""
    about = Prose(f"{target.reference}\n\n{scale}: {target.scales[scale].about}", note=True)
    notes = Prose("\n\n".join(findings.notes), note=True)
    summary = findings.summary or target.summary
    blocks: list[Block] = [Prose(summary)] if summary.strip() else []
    blocks += [about, notes] if findings.sections else [about, *findings.tables, notes]
    if not findings.sections:
        blocks += [
            Figure(panels=tuple(panels), caption=f"{title or target.heading(scale)}.")
            for rows in findings.figures.values()
            for title, panels in rows.items()
        ]
    return Section(target.heading(scale), tuple(blocks), findings.sections)


def failed(failures: Sequence[Failure]) -> ReproductionError:
    """Return the error that names failed runs."""
    messages = [f"{failure.name}: {failure.message}" for failure in failures[:_MOST_LISTED]]
    if len(failures) > _MOST_LISTED:
        messages.append(f"and {len(failures) - _MOST_LISTED} more")
    count = "a run has" if len(failures) == 1 else f"{len(failures)} runs have"
    return ReproductionError(
        f"{count} failed ({'; '.join(messages)}); the same command tries again"
    )
