"""What a run writes down: how each stage spent its time, and a log of events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ACTIVITIES = ("forward", "backward", "update", "wait")
"""What a stage can be busy with, or idle for (``wait``: for a neighbour's message)."""


class StageClock:
    """Add up the seconds that a stage spends on each activity.

    On an accelerator these are the seconds of the host, which runs ahead of the device.

    Example:
        >>> clock = StageClock()
        >>> with clock.measure("forward"):
        ...     pass
        >>> sorted(clock.seconds) == sorted(ACTIVITIES)
        True
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(ACTIVITIES, 0.0)

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Count the block's duration."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start

    def reset(self) -> None:
        """Start from zero again."""
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)


class EventLog:
    """Append events to a file, one JSON object per line; each line is whole as soon as written.

    Args:
        path: the file; made if it is not there, continued if it is.
    """

    def __init__(self, path: Path) -> None:
        _drop_cut_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _drop_cut_line(path: Path) -> None:
    """Remove a last line that a crash has cut off, so that the next one begins on its own."""
    if path.exists():
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read what ``EventLog`` wrote; a last line cut off by a crash is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events
