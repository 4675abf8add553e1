"""Measurements that are kept one by one, so that an interrupted series continues."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delaygrad.errors import DataError, DelaygradError
from delaygrad.records import parse_json
from delaygrad.reproduce.target import Failure, Say, Target, require_same
from delaygrad.training import run_folder

FOLDER = "measured"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measurement.

    Attributes:
        name: different from all others of its target and scale.
        folder: of the target's results at the scale.
        settings: plain values that decide it.
        row: what its rows begin with.
        measure: makes it.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    row: dict[str, Any]
    measure: Callable[[], dict[str, Any]]

    @property
    def path(self) -> Path:
        """The file that keeps it."""
        return self.folder / FOLDER / f"{self.name}.json"

    def is_done(self) -> bool:
        """Whether there is a result."""
        return self.path.exists()

    def kept(self) -> dict[str, Any] | None:
        """Return what was measured; None if nothing was.

        Raises:
            ConfigError: there is a measurement with other settings; says which.
            DataError: the file is damaged.
        """
        if not self.is_done():
            return None
        try:
            found: dict[str, Any] = parse_json(self.path.read_text(encoding="utf-8"))
            before = dict(found["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"a measurement is damaged ({self.path}: {type(error).__name__}: {error}); move it "
                "away, and the same command makes it anew"
            ) from error
        require_same("measurement", self.path, before, self.settings)
        return found

    def make(self) -> None:
        """Measure, and keep the result with name, settings and environment."""
        head = {"name": self.name, "settings": self.settings}
        result = {**head, "environment": run_folder.environment(), **self.measure()}
        with run_folder.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(self.path, result)


@dataclass(frozen=True, kw_only=True)
class MeasuredTarget(Target):
    """A target of measurements, made one after the other, alone on the machine.

    A measurement that fails does not stop the others.
    """

    @classmethod
    def make(
        cls, planned: Sequence[Measurement], workers: int | None, say: Say | None
    ) -> list[Failure]:
        """Make what is missing; see ``Target``."""
        failures = []
        for measurement in planned:
            if measurement.kept() is None:
                if say is not None:
                    say(f"measuring {measurement.name}")
                try:
                    measurement.make()
                except DelaygradError as error:
                    failures.append(Failure(measurement.name, str(error)))
        return failures

    def measured_rows(self, planned: Sequence[Measurement]) -> list[dict[str, Any]]:
        """Return the rows of all measurements."""
        return [
            row
            for measurement in planned
            if (found := measurement.kept()) is not None
            for row in self.rows(measurement, found)
        ]

    @abstractmethod
    def rows(self, measurement: Measurement, found: dict[str, Any]) -> list[dict[str, Any]]:
        """Turn a measurement into rows of plain values."""
