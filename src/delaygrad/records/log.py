"""A log of events that can be read at any moment; a checksum per line shows damage.

    {"event": "training", "iteration": 10, "loss": 2.25, "crc32": "5f2d9c1e"}

The checksum is that of the line without the checksum. Logs without checksums can be read too.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

from delaygrad.errors import DataError

_CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"}')


def log_line(event: dict[str, Any]) -> str:
    """Return an event as a line with its checksum."""
    line = json.dumps(event)
    return f'{line[:-1]}, "crc32": "{zlib.crc32(line.encode()):08x}"}}\n'


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of any origin.

    Raises:
        ValueError: it is not JSON, not UTF-8 (not even what its escapes stand for), or nested
            too deeply.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half a pair of surrogates could not be written again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


class EventLog:
    """Append events to a file, one JSON object per line; each line is written at once.

    Args:
        path: the file; created if missing, else continued.
    """

    def __init__(self, path: Path) -> None:
        _drop_cut_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        self._file.write(log_line({"event": event, **fields}))
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
    """Read what ``EventLog`` wrote; a last line cut off by a crash is left out.

    Raises:
        DataError: another line is damaged; says which.
        OSError: the file cannot be read.
    """
    events, damaged = read_sound_events(path)
    if damaged:
        lines = ", ".join(map(str, damaged))
        raise DataError(
            f"the records are damaged ({path}, lines: {lines}); leave the run out, or remove "
            "these lines"
        )
    return events


def read_sound_events(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Read the events that are sound, and the numbers, from 1, of the lines that are damaged.

    A line is sound if it is an event and its checksum is right. It may lack a checksum only where
    no line above has one. A last line that a crash has cut off is neither.
    """
    events: list[dict[str, Any]] = []
    damaged: list[int] = []
    lines = path.read_bytes().split(b"\n")
    checked = False
    for number, line in enumerate(lines, start=1):
        event, has_checksum = _read_line(line)
        checked = checked or has_checksum
        if event is not None and has_checksum == checked:
            events.append(event)
        elif number < len(lines):  # what follows the last line break is cut off, or nothing
            damaged.append(number)
    return events, damaged


def _read_line(line: bytes) -> tuple[dict[str, Any] | None, bool]:
    """Return the event, None if it is damaged, and whether it has a checksum."""
    checksum = _CHECKSUM.fullmatch(line[-22:])
    if checksum:
        line = line[:-22] + b"}"
        if zlib.crc32(line) != int(checksum[1], 16):
            return None, True
    try:
        event = parse_json(line)
    except ValueError:
        event = None
    sound = (
        isinstance(event, dict)
        and isinstance(event.get("event"), str)
        and type(event.get("iteration", 0)) is int
    )
    return (event if sound else None), checksum is not None
