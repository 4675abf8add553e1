"""Read the tables of a TOML file into frozen dataclasses; what does not belong is an error."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

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
    kinds = typing.get_type_hints(kind)
    every = dataclasses.fields(typing.cast(Any, kind))
    fields = {field.name: field for field in every if field.name not in given}
    for key in values:
        if key not in fields:
            raise unknown(f"key in {place}", key, fields, label="key")
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{place} lacks {', '.join(missing)}")
    own = {key: _convert(kinds[key], value, key, place) for key, value in values.items()}
    return kind(**own, **given)


def unknown(what: str, given: str, known: Iterable[str], label: str | None = None) -> ConfigError:
    """Make the error that names something like what was given, or everything there is."""
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"
    return ConfigError(f"unknown {what} ({label or what}: {given!r}); {hint}")


def _convert(kind: Any, value: Any, key: str, place: str) -> Any:
    if kind is Any:
        return value
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):  # X | None: TOML has no null
        return _convert(inner[0], value, key, place)
    if origin is Literal:
        if value in inner:
            return value
        raise unknown(f"{key} in {place}", str(value), map(str, inner), label=key)
    if origin is tuple and isinstance(value, list):
        numbered = enumerate(value, start=1)
        return tuple(_convert(inner[0], v, key, _inside(place, key, str(n))) for n, v in numbered)
    if origin is dict and isinstance(value, dict):
        return {k: _convert(inner[1], v, k, _inside(place, key, k)) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        return read(typing.cast(Any, kind), value, place)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    raise ConfigError(
        f"wrong type in {place} ({key}: {value!r}; expected: {getattr(kind, '__name__', kind)})"
    )


def _inside(place: str, key: str, which: str) -> str:
    """Name a place within a place, such as ``target.toml: scales.cpu``."""
    file, _, table = place.partition(": ")
    return f"{file}: {f'{table}.' if table else ''}{key}.{which}"
