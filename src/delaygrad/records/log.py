"""A log of events that is readable at any moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
