"""Measurements that are kept one by one, so that an interrupted series goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from delaygrad.errors import ConfigError, DataError
from delaygrad.training import run_folder

FOLDER = "measured"


def kept_or_measured(
    folder: Path,
    name: str,
    settings: dict[str, Any],
    measure: Callable[[], dict[str, Any]] | None,
) -> dict[str, Any] | None:
    """Return a measurement: the one on record, or a new one, which is then on record.

    Args:
        folder: of the scale.
        name: of the case.
        settings: plain values that decide it.
        measure: makes it; None: only what is there.

    Returns:
        What was measured, with name, settings and environment; None if there is none.

    Raises:
        ConfigError: there is one with other settings; says which.
    """
    path = folder / FOLDER / f"{name}.json"
    if path.exists():
        found, before = _read(path)
        differing = [
            f"{key}: {before.get(key)} there, {settings.get(key)} here"
            for key in {**before, **settings}
            if before.get(key) != settings.get(key)
        ]
        if differing:
            raise ConfigError(
                f"there is a measurement with other settings in this place ({path}; "
                f"{'; '.join(differing)}); move it away, or choose another --output"
            )
        return found
    if measure is None:
        return None
    result = {"name": name, "settings": settings, "environment": run_folder.environment()}
    result.update(measure())
    with run_folder.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_json(path, result)
    return result


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a measurement, and its settings."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found, dict(found["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"a measurement is damaged ({path}: {type(error).__name__}: {error}); move it away, "
            "and the same command makes it anew"
        ) from error
