"""Configurations in components, and their flat form: names and plain values.

The flat form is what a config.json, a TOML file and the command line hold. A component that is one
of several kinds is a choice: its key in the flat form holds the name of the kind, and the options
of that kind stand beside it.

    data: digits   method: ddg   slack: 1   stages: 4   ...
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from delaygrad.errors import ConfigError
from delaygrad.plain_values import convert, unknown

Flat = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Component:
    """A part of a configuration; its annotations are checked.

    Subclasses describe their fields under ``Args``, where the command line finds its help.
    """

    def __post_init__(self) -> None:
        for name, hint in options_of(type(self)).items():
            object.__setattr__(self, name, convert(hint, getattr(self, name), name, "config"))

    def options(self) -> dict[str, Any]:
        """Return the fields but the name."""
        return {name: getattr(self, name) for name in options_of(type(self))}


@dataclass(frozen=True, kw_only=True)
class Kind(Component):
    """One kind of a choice; ``name`` tells it from the others."""

    name: str


@dataclass(frozen=True)
class Choice:
    """The kinds of a choice.

    Attributes:
        default: the name that is chosen where none is given.
        kinds: by name.
        other: the kind of a name that is not among them; None if there is none.
    """

    default: str
    kinds: Callable[[], Mapping[str, type[Kind]]]
    other: Callable[[str], type[Kind] | None] = lambda name: None

    def find(self, name: object) -> type[Kind] | None:
        """Return the kind of a name; None if there is none."""
        return (self.kinds().get(name) or self.other(name)) if isinstance(name, str) else None


def options_of(kind: type[Component]) -> dict[str, Any]:
    """Return the annotations of a component's fields but the name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    return {field.name: hints[field.name] for field in fields if field.name != "name"}


def defaults_of(kind: type[Component]) -> dict[str, Any]:
    """Return the defaults of a component's fields but the name; MISSING where there is none."""
    fields = dataclasses.fields(kind)
    return {field.name: field.default for field in fields if field.name != "name"}


def plain(value: Any) -> Any:
    """Return a setting as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, kw_only=True)
class Config:
    """Components side by side; a field with the name of a choice holds one of its kinds."""

    choices: ClassVar[Mapping[str, Choice]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}
    """Keys by the name that they had in earlier versions."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Build a configuration from the keys and values of its flat form."""
        return cls.from_json(values)

    @classmethod
    def from_json(cls, values: Flat, source: str = "config") -> Self:
        """Build a configuration from its flat form; None stands for the default.

        An option of a kind that is not chosen may stay where it has its default, as in files of
        earlier versions.

        Raises:
            ConfigError: a key is unknown, missing or without effect, or a value is refused.
        """
        given = {k: value for k, value in cls._by_new_names(values).items() if value is not None}
        kinds, built = cls.kinds(given), dict[str, Component]()
        known = [*cls.choices, *(name for kind in kinds.values() for name in options_of(kind))]
        for key in given.keys() - set(known):
            kinds_having = [kind for one in cls._having(key).values() for kind in one.values()]
            if all(plain(given[key]) != plain(defaults_of(kind)[key]) for kind in kinds_having):
                raise cls.without_effect(key, given[key], given, source) or unknown(
                    f"key in {source}", key, known, label="key"
                )
        for part, kind in kinds.items():
            own = {
                name: convert(hint, given[name], name, source)
                for name, hint in options_of(kind).items()
                if name in given
            }
            chosen = {"name": cls.chosen(part, given)} if part in cls.choices else {}
            for name, default in defaults_of(kind).items():
                if default is MISSING and name not in own:
                    raise ConfigError(f"{part} {chosen['name']} needs {name}; set {flag(name)}")
            built[part] = kind(**chosen, **own)
        return cls(**built)

    def to_json(self) -> dict[str, Any]:
        """Return the flat form; ``from_json`` reads it back."""
        flat: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            flat |= {field.name: part.name} if field.name in self.choices else {}
            flat |= {name: plain(value) for name, value in part.options().items()}
        return flat

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process in the flat form; classes made from methods cannot."""
        return type(self).from_json, (self.to_json(),)

    def replace(self, **values: Any) -> Self:
        """Return the configuration with other values for some keys of its flat form."""
        return self.from_json({**self.to_json(), **values})

    @classmethod
    def applying(cls, values: Flat) -> dict[str, Any]:
        """Return what applies of a recorded flat form, and defaults for what is missing.

        For titles, and to compare runs that any version has recorded: nothing is checked, keys and
        choices that this version does not know stay.
        """
        values = cls._by_new_names(values)
        found, aside = dict[str, Any](), set[str]()
        for part in cls._parts():
            kind = cls._kind(part, values)
            if part in cls.choices:
                found[part] = cls.chosen(part, values)
            if kind is not None:
                aside |= set(cls.setting_names(part))
                defaults = defaults_of(kind).items()
                found |= {n: None if v is MISSING else plain(v) for n, v in defaults}
        kept = {
            key: plain(value) for key, value in values.items() if key in found or key not in aside
        }
        return {**found, **{key: value for key, value in kept.items() if value is not None}}

    @classmethod
    def kinds(cls, values: Flat) -> dict[str, type[Component]]:
        """Return the class of each component, as chosen by a flat form.

        Raises:
            ConfigError: a name is unknown.
        """
        found = dict[str, type[Component]]()
        for part in cls._parts():
            if (kind := cls._kind(part, values)) is None:
                names = cls.choices[part].kinds()
                raise unknown(part, cls.chosen(part, values), names)
            found[part] = kind
        return found

    @classmethod
    def chosen(cls, part: str, values: Flat) -> Any:
        """Return the name that a flat form chooses."""
        return values.get(part, cls.choices[part].default)

    @classmethod
    def setting_names(cls, part: str | None = None) -> list[str]:
        """Return the keys of the flat form, of all kinds; or those of one component."""
        names = list[str]()
        for one, kind in cls._parts().items():
            if part in (None, one):
                choice = cls.choices.get(one)
                kinds = [kind] if choice is None else choice.kinds().values()
                names += [one] if choice else []
                names += [name for each in kinds for name in options_of(each)]
        return list(dict.fromkeys(names))

    @classmethod
    def _by_new_names(cls, values: Flat) -> dict[str, Any]:
        return {cls.renamed.get(key, key): value for key, value in values.items()}

    @classmethod
    def _parts(cls) -> dict[str, type[Component]]:
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def _kind(cls, part: str, values: Flat) -> type[Component] | None:
        choice = cls.choices.get(part)
        return choice.find(cls.chosen(part, values)) if choice else cls._parts()[part]

    @classmethod
    def without_effect(cls, key: str, value: Any, values: Flat, source: str) -> ConfigError | None:
        """Return the error of an option whose kind is not chosen; None if no kind has the option.

        Args:
            values: the flat form that chooses.
        """
        for part, having in cls._having(key).items():
            return ConfigError(
                f"option without effect in {source} ({key}: {value}); {part} "
                f"{cls.chosen(part, values)} does not have it: leave it out, or choose "
                f"{' or '.join(having)}"
            )
        return None

    @classmethod
    def _having(cls, key: str) -> dict[str, dict[str, type[Kind]]]:
        """Return the kinds that have an option, by choice and name."""
        every = {
            part: {name: kind for name, kind in choice.kinds().items() if key in options_of(kind)}
            for part, choice in cls.choices.items()
        }
        return {part: having for part, having in every.items() if having}


def flag(name: str) -> str:
    """Return the flag of a setting on the command line.

    Example:
        >>> flag("micro_batches")
        '--micro-batches'
    """
    return f"--{name.replace('_', '-')}"
