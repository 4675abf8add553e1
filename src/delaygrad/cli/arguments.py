"""Parse a command's arguments; a configuration shows the options of what is chosen only.

First the choices are read (``--method ddg``), and the file of ``--config``; then the flags of the
chosen kinds are made from their classes. So a new method is on the command line by itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import docstring_parser
import tyro

from delaygrad.errors import ConfigError
from delaygrad.plain_values import convert, unknown
from delaygrad.training.choices import ASKED
from delaygrad.training.component import Component, Config, defaults_of, flag, options_of
from delaygrad.training.config import TrainConfig, read_settings


class Command(Protocol):
    """What a command's arguments make: a dataclass that can be called."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init__(self, **fields: Any) -> None: ...

    def __call__(self) -> None: ...


def parse(command: type[Command], arguments: Sequence[str], program: str) -> Command:
    """Make a command, a dataclass, from its arguments; exits with 2 if they are wrong.

    A field of it may be a ``Config``. ``program`` is what help and messages call the command.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    config = next(
        (h for h in hints.values() if isinstance(h, type) and issubclass(h, Config)), None
    )
    if config is None:
        parsed: Command = _parse(command, arguments, program, None)
        return parsed
    given = _file(arguments, config) if "config" in hints else {}
    values = {**given, **_choices(config, arguments)}
    kinds, helps = config.kinds(values), _helps(command)
    place = _value("--config", arguments) or program
    own = [
        (field.name, _asked(hints[field.name], field.name, helps), field.default)
        for field in dataclasses.fields(command)
        if hints[field.name] is not config
    ]
    sections = [
        (part, Annotated[_section(config, part, kind, values, place), tyro.conf.OmitArgPrefixes])
        for part, kind in kinds.items()
    ]
    flags = dataclasses.make_dataclass("Flags", [*sections, *own], kw_only=True)
    flags.__doc__ = docstring_parser.parse(command.__doc__ or "").short_description
    found = vars(_parse(flags, arguments, program, (config, values)))
    for part in kinds:
        given |= vars(found.pop(part))
    built = config.from_json(given, program)
    (name,) = (name for name, hint in hints.items() if hint is config)
    return command(**{name: built}, **found)


def to_flags(config: TrainConfig) -> list[str]:
    """Return the arguments that make a configuration, but for what is the default."""
    values, words = config.to_json(), list[str]()
    defaults = TrainConfig.applying({part: values[part] for part in config.choices})
    defaults |= {part: choice.default for part, choice in config.choices.items()}
    for name, value in values.items():
        if value == defaults[name]:
            continue
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(f"no_{name}"))
        else:
            words += [flag(name), *map(str, value if isinstance(value, list) else [value])]
    return words


def _section(
    config: type[Config], part: str, kind: type[Component], values: Mapping[str, Any], place: str
) -> type:
    """Make the flags of one component, with the defaults of a file."""
    helps, fields = _helps(kind), list[Any]()
    if part in config.choices:
        about = docstring_parser.parse(typing.get_type_hints(config)[part].__doc__ or "")
        text = _joined(f"{about.short_description} {about.long_description or ''}")
        asked = tyro.conf.arg(help=text, metavar="|".join(config.choices[part].kinds()))
        fields.append((part, Annotated[str, asked], config.chosen(part, values)))
    for name, default in defaults_of(kind).items():
        hint = options_of(kind)[name]
        asked = (name, _asked(hint, name, helps))
        if values.get(name) is not None:
            default = convert(hint, values[name], name, place)
        fields.append(asked if default is dataclasses.MISSING else (*asked, default))
    section = dataclasses.make_dataclass(part, fields, kw_only=True)
    section.__doc__ = docstring_parser.parse(kind.__doc__ or "").short_description
    return section


def _asked(hint: Any, name: str, helps: Mapping[str, str]) -> Any:
    return Annotated[hint, tyro.conf.arg(help=helps.get(name, ""))]


def _helps(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say under ``Args``."""
    found = dict[str, str]()
    for base in reversed(kind.__mro__):
        for param in docstring_parser.parse(base.__doc__ or "").params:
            text = _joined(param.description)
            found[ASKED.get(param.arg_name, param.arg_name)] = text[:1].upper() + text[1:]
    return found


def _joined(text: str | None) -> str:
    return " ".join((text or "").replace("``", "").split())


def _choices(config: type[Config], arguments: Sequence[str]) -> dict[str, str]:
    """Read the choices that the arguments make."""
    found = {part: _value(flag(part), arguments) for part in config.choices}
    return {part: value for part, value in found.items() if value is not None}


def _file(arguments: Sequence[str], config: type[Config]) -> dict[str, Any]:
    """Read the file of ``--config``, whose settings are the defaults of the flags."""
    path = _value("--config", arguments)
    if path == "":
        raise ConfigError("--config needs the path of a file")
    values = {} if path is None else read_settings(Path(path))
    for key in values:
        if key not in config.setting_names():
            raise unknown(f"key in {path}", key, config.setting_names(), label="key")
    return values


def _value(name: str, arguments: Sequence[str]) -> str | None:
    """Return what follows a flag; None if the flag is not there."""
    for index, argument in enumerate(arguments):
        if argument == name:
            return "".join(arguments[index + 1 : index + 2])
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
    return None


def _parse(
    command: Any,
    arguments: Sequence[str],
    program: str,
    chosen: tuple[type[Config], Mapping[str, Any]] | None,
) -> Any:
    parsed, left = tyro.cli(command, args=arguments, prog=program, return_unknown_args=True)
    if not left:
        return parsed
    name, _, value = left[0].partition("=")
    value = value or "".join(word for word in left[1:2] if not word.startswith("--"))
    if chosen is not None:
        config, values = chosen
        key = name.removeprefix("--").removeprefix("no-").replace("-", "_")
        if error := config.without_effect(key, value or "given", values, program):
            raise error
    refuse("option", name, _flags(parsed), program)


def refuse(what: str, given: str, known: Sequence[str], program: str) -> typing.NoReturn:
    """Say that there is no such command or option, name one that is close, and exit with 2."""
    close = difflib.get_close_matches(given, known, n=1)
    advice = f"did you mean {close[0]}?" if close else f"see {program} --help"
    print(f"{program}: unknown {what} ({given}); {advice}", file=sys.stderr)
    sys.exit(2)


def _flags(parsed: Any) -> list[str]:
    """Return the flags of a parsed command."""
    names = [field.name for field in dataclasses.fields(parsed)]
    inner = [getattr(parsed, name) for name in names]
    nested = (
        found for value in inner if dataclasses.is_dataclass(value) for found in _flags(value)
    )
    return [*map(flag, names), *nested]
