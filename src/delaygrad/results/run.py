"""The one reader of run folders: what a run's plain files say, finished or not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from delaygrad.errors import ConfigError, DataError
from delaygrad.records import (
    TRACE_EVENTS,
    Trace,
    parse_json,
    read_events,
    read_sound_events,
    read_trace,
)
from delaygrad.training.run_folder import CONFIG, RECORDS, SUMMARY

_NUMBERS = {  # the numbers that each kind of event must have
    "training": ("iteration", "epoch", "loss"),
    "evaluation": ("iteration", "epoch", "loss", "accuracy"),
    "direction": ("iteration", "epoch"),
    "diverged": ("iteration",),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. Accuracies are in percent.

    Attributes:
        name: of the folder.
        config: settings and their values.
        environment: versions and machine.
        events: of records.jsonl, in order. ``elapsed_s`` continues where a run was resumed; the
            pause is left out.
        summary: the result; None before the end.
        trace: the recorded timeline, if there is one.
    """

    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    events: tuple[dict[str, Any], ...]
    summary: dict[str, Any] | None
    trace: Trace | None = None

    @property
    def state(self) -> Literal["finished", "diverged", "unfinished"]:
        """What became of the run; a diverged run that was resumed is not diverged."""
        if self.summary is not None:
            return "finished"
        diverged = bool(self.events) and self.events[-1]["event"] == "diverged"
        return "diverged" if diverged else "unfinished"

    @property
    def state_text(self) -> str:
        """The state in words."""
        if self.state == "finished":
            return "finished"
        if self.state == "diverged":
            event = self.events[-1]
            loss = f" (loss {event['loss']})" if "loss" in event else ""
            return f"diverged at iteration {event['iteration']:,}{loss}"
        events = [event for event in self.events if "epoch" in _NUMBERS.get(event["event"], ())]
        last = max((event["iteration"] for event in events), default=0)
        epoch = max((event["epoch"] for event in events), default=0.0)
        planned = None if self.config.get("iterations") else self.config.get("epochs")
        whole = "" if planned is None else f" of {planned}"
        return f"unfinished at iteration {last:,} (epoch {epoch:.1f}{whole})"

    @property
    def method(self) -> str:
        """The method's short name."""
        return str(self.config["method"])

    @property
    def num_stages(self) -> int:
        """K."""
        return int(self.config["stages"])

    @property
    def seed(self) -> Any:
        """The seed of initial weights and data order."""
        return self.config.get("seed")

    @property
    def takes_turns(self) -> bool:
        """Whether several stages alternated in one process."""
        return self.num_stages > 1 and self.config.get("runtime", "local") == "local"

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    def evaluations(self, split: str) -> list[dict[str, Any]]:
        """Return the evaluations on a split, in order."""
        return [event for event in self.of_kind("evaluation") if event["split"] == split]

    @property
    def epochs(self) -> float:
        """Epochs done."""
        done = [event["epoch"] for event in self.events if number(event.get("epoch")) is not None]
        return float((self.summary or {}).get("epochs", max(done, default=0.0)))

    @property
    def final_accuracy(self) -> float | None:
        """Test accuracy at the end of the run; None before the end."""
        return None if self.summary is None else 100 * float(self.summary["test_accuracy"])

    @cached_property
    def best_test(self) -> dict[str, Any] | None:
        """The evaluation with the highest test accuracy; None with fewer than two of them.

        The test set itself chooses it, so the figure is optimistic. Papers report it nevertheless.
        """
        tests = self.evaluations("test")
        return None if len(tests) < 2 else max(tests, key=lambda event: float(event["accuracy"]))

    @property
    def best_accuracy(self) -> float | None:
        """The best test accuracy of a finished run."""
        best = self.best_test if self.summary is not None else None
        return None if best is None else 100 * float(best["accuracy"])

    @property
    def train_loss(self) -> float | None:
        """The mean of the training losses recorded in the last epoch; None before the end."""
        if self.summary is None:
            return None
        events = self.of_kind("training")
        losses = [event["loss"] for event in events if event["epoch"] > self.epochs - 1]
        return math.fsum(losses) / len(losses) if losses else None

    @property
    def epoch_s(self) -> float | None:
        """Seconds of training per epoch, from the last recorded throughput."""
        last = (self.of_kind("training") or [{}])[-1]
        speed, batch_size = number(last.get("samples_per_s")), number(self.config.get("batch_size"))
        if not speed or not batch_size or not last["epoch"]:
            return None
        return float(batch_size * last["iteration"] / last["epoch"] / speed)

    @property
    def test_loss(self) -> float | None:
        """Test loss at the end of the run."""
        return self.result("test_loss")

    def result(self, name: str) -> float | None:
        """Return a number of the summary; None where there is none."""
        return number((self.summary or {}).get(name))

    @property
    def stages(self) -> list[dict[str, Any]]:
        """What the summary says of each stage; [] before the end."""
        return list((self.summary or {}).get("stages", []))

    @property
    def traced_stages(self) -> list[dict[str, Any]]:
        """What the summary says of each stage's recorded timeline."""
        return list((self.summary or {}).get("trace", {}).get("stages", []))


def number(value: object) -> float | None:
    """Return a number as a float, anything else as None.

    Example:
        >>> number(2), number("2"), number(True)
        (2.0, None, None)
    """
    is_number = isinstance(value, float) or (type(value) is int and abs(value) < 10**300)
    return float(value) if is_number else None  # type: ignore[arg-type]


def read_runs(run_dirs: Iterable[Path]) -> tuple[Run, ...]:
    """Read several runs, at least one; the names of their folders must differ.

    Raises:
        ConfigError: a folder has no run, or two have the same name.
        DataError: a file is corrupt.
    """
    by_name: dict[str, Path] = {}
    for run_dir in run_dirs:
        name = run_dir.resolve().name
        if name in by_name:
            raise ConfigError(
                f"two runs have the same name ({by_name[name]}, {run_dir}); give each once, or "
                "rename one of the folders"
            )
        by_name[name] = run_dir
    if not by_name:
        raise ConfigError("a report needs at least one run; give the folders of some")
    return tuple(read_run(run_dir) for run_dir in by_name.values())


def read_run(run_dir: Path, *, sound_only: bool = False) -> Run:
    """Read one run.

    Args:
        run_dir: its folder.
        sound_only: skip damaged lines of the records instead of raising.

    Raises:
        ConfigError: there is no run in the folder.
        DataError: a file is corrupt.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise ConfigError(f"there is no run in this folder ({run_dir}); {_remedy(run_dir)}")
    recorded = _read_object(path, needed=("config",))
    config, environment = recorded["config"], recorded.get("environment", {})
    _require(isinstance(config, dict) and isinstance(environment, dict), path, "no config")
    _require(isinstance(config.get("method"), str), path, "no method")
    _require(type(config.get("stages")) is int, path, "no stages")
    return Run(
        name=run_dir.resolve().name,
        config=config,
        environment=environment,
        events=_read_records(run_dir / RECORDS, sound_only),
        summary=_read_summary(run_dir / SUMMARY),
        trace=read_trace(run_dir) if (run_dir / TRACE_EVENTS).exists() else None,
    )


def _remedy(run_dir: Path) -> str:
    if not run_dir.is_dir():
        return "there is no such folder"
    inside = sum(1 for _ in run_dir.glob(f"*/{CONFIG}"))
    if inside:
        return f"folders in it hold runs ({inside}): give {run_dir}/*"
    return f"it has no {CONFIG}"


def _read_object(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    try:
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the run ({path}): {error.strerror}") from error
    except ValueError as error:
        raise _corrupt(path, error) from error
    _require(isinstance(values, dict), path, "not an object")
    for name in needed:
        _require(name in values, path, f"no {name}")
    return dict(values)


def _read_summary(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    summary = _read_object(path, needed=("test_accuracy",))
    accuracy = number(summary["test_accuracy"])
    _require(accuracy is not None and math.isfinite(accuracy), path, "no test_accuracy")
    trace = summary.get("trace", {})
    _require(isinstance(trace, dict), path, "trace")
    for stages in (summary.get("stages", []), trace.get("stages", [])):
        _require(_are_stages(stages), path, "stages")
    return summary


def _are_stages(stages: object) -> bool:
    return isinstance(stages, list) and all(
        isinstance(row, dict) and type(row.get("stage")) is int for row in stages
    )


def _read_records(path: Path, sound_only: bool) -> tuple[dict[str, Any], ...]:
    if not path.exists():  # a run that has just begun
        return ()
    try:
        events = read_sound_events(path)[0] if sound_only else read_events(path)
    except OSError as error:
        raise DataError(f"cannot read the run ({path}): {error.strerror}") from error
    for line, event in enumerate(events, start=1):
        for name in _NUMBERS.get(event["event"], ()):
            _require(number(event.get(name)) is not None, path, f"line {line}: no {name}")
        if event["event"] == "evaluation":
            _require(isinstance(event.get("split"), str), path, f"line {line}: no split")
        if event["event"] == "direction":
            _require(_are_stages(event.get("stages")), path, f"line {line}: no stages")
    return tuple(_with_joined_times(events))


def _with_joined_times(events: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Let ``elapsed_s`` continue where a resumed run began to count from zero again."""
    before_s = last_s = 0.0
    for event in events:
        elapsed_s = number(event.get("elapsed_s"))
        if elapsed_s is None:
            yield {**event, "elapsed_s": math.nan}
            continue
        if elapsed_s < last_s:
            before_s += last_s
        last_s = elapsed_s
        yield {**event, "elapsed_s": before_s + elapsed_s}


def _require(condition: bool, path: Path, what: str) -> None:
    if not condition:
        raise _corrupt(path, what)


def _corrupt(path: Path, what: object) -> DataError:
    return DataError(
        f"the run's file is corrupt ({path}: {what}); leave the run out, or move it away and "
        "train it again"
    )
