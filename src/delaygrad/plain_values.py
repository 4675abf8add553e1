"""Build frozen dataclasses from plain values: TOML, JSON, the command line.

The annotations say what each key must hold; what does not belong is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from delaygrad.errors import ConfigError

T = TypeVar("T")


def read(
    kind: type[T], values: Any, place: str, given: Mapping[str, Any] = types.MappingProxyType({})
) -> T:
    """Build a dataclass from a table, and the dataclasses within it from the tables within.

    Args:
        kind: a dataclass; its annotations say what each key must hold.
        values: as ``tomllib`` gives them.
        place: where they stand, for messages.
        given: fields that come from elsewhere and are no keys of the table.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or is refused.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Point:
        ...     x: float
        ...     tags: tuple[str, ...] = ()
        >>> read(Point, {"x": 1, "tags": ["a"]}, "[point]").tags
        ('a',)
        >>> read(Point, {"y": 1}, "[point]")
        Traceback (most recent call last):
        ...
        delaygrad.errors.ConfigError: unknown key in [point] (key: 'y'); known: x, tags
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{place} must be a table (given: {values!r})")
    kinds = typing.get_type_hints(kind, include_extras=True)
    fields = {
        field.name: field
        for field in dataclasses.fields(typing.cast(Any, kind))
        if field.name not in given
    }
    for key in values:
        if key not in fields:
            raise unknown(f"key in {place}", key, fields, label="key")
    missing = [name for name in fields if name not in values and is_required(fields[name])]
    if missing:
        raise ConfigError(f"{place} lacks {', '.join(missing)}")
    own = {key: convert(kinds[key], value, key, place) for key, value in values.items()}
    return kind(**own, **given)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Say whether a field has no default."""
    return field.default is field.default_factory is dataclasses.MISSING


def unknown(
    what: str, given: object, known: Iterable[str], label: str | None = None
) -> ConfigError:
    """Make the error that names something like what was given, or everything there is."""
    names = list(known)
    close = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"
    return ConfigError(f"unknown {what} ({label or what}: {shown(given)}); {hint}")


def shown(value: object) -> str:
    """Return a value for a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def convert(kind: Any, value: Any, key: str, place: str) -> Any:
    """Return the value of one key in the type that its annotation asks for.

    Raises:
        ConfigError: it has another type, or is out of range.

    Example:
        >>> convert(tuple[float, ...], [1, 2.5], "speeds", "a file")
        (1.0, 2.5)
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        numbered = enumerate(value, start=1)
        return tuple(convert(inner[0], v, key, _inside(place, key, str(n))) for n, v in numbered)
    if origin is dict and isinstance(value, dict):
        return {k: convert(inner[1], v, k, _inside(place, key, k)) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return read(typing.cast(Any, kind), value, place)
    try:
        return msgspec.convert(value, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        if choices := _choices(kind):
            raise unknown(f"{key} in {place}", value, choices, label=key) from None
        reason = str(error).replace("`", "").replace("Expected", "expected")
        raise ConfigError(f"wrong value in {place} ({key}: {shown(value)}; {reason})") from None


def _choices(kind: Any) -> list[str]:
    """Return the strings among which an annotation chooses."""
    if typing.get_origin(kind) is Literal:
        return [str(choice) for choice in typing.get_args(kind)]
    return [choice for one in typing.get_args(kind) for choice in _choices(one)]


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")


def _inside(place: str, key: str, which: str) -> str:
    """Name a place within a place, such as ``target.toml: scales.cpu``."""
    file, _, table = place.partition(": ")
    return f"{file}: {f'{table}.' if table else ''}{key}.{which}"
