"""The house of CONTRIBUTING.md: imports point to lower floors only.

Read from the source with `ast`, so that a module need not be importable, nor an import executed,
to be judged. Imports under `if TYPE_CHECKING` and inside functions count like any other.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "delaygrad"

FLOORS = {
    "__main__": 10,  # the front door
    "cli": 9,
    "reproduce": 8,
    "bench": 7,
    "results": 7,
    "training": 6,
    "planning": 5,
    "monitor": 5,
    "runtime": 4,
    "launch": 0,
    "stage": 3,
    "methods": 2,
    "checkpoint": 2,
    "schedule": 1,
    "transport": 1,
    "partition": 1,
    "boundary": 0,
    "random_stream": 0,
    "rounding_rule": 0,
    "plain_values": 0,
    "optimizers": 0,
    "stash": 1,
    "state_check": 1,
    "records": 1,
    "data": 0,
    "models": 0,
    "theory": 0,
    "errors": -1,  # the ground: stands under everything, floor 0 included
}
MAY_USE_TORCH_DISTRIBUTED = {"transport", "runtime", "launch", "bench"}  # bench: for the rivals
MUST_NOT_USE_TORCH = {"schedule"}
FORBIDDEN_NAMES = {"utils", "helpers", "common"}
ROOF = "__init__"  # the package's own __init__.py: may import from any floor

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    """The top-level name that a file belongs to: ``runtime/local.py`` and ``stash.py`` alike."""
    return module.parts[0].removesuffix(".py")


def imports(module: Path, source: str) -> Iterator[tuple[int, str]]:
    """Every imported name, dotted and absolute, with its line.

    ``from a.b import c`` gives ``a.b.c``, since c may be a module.
    """
    package = ("delaygrad", *module.parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = [*base, *([node.module] if node.module else [])]
            for alias in node.names:
                yield node.lineno, ".".join([*stem, alias.name])


def attributes(source: str) -> Iterator[tuple[int, str]]:
    """Every ``a.b`` used in an expression, with its line; ``a.b.c`` gives ``a.b`` too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def direction_violations(module: Path, source: str) -> list[str]:
    room = room_of(module)
    if room not in FLOORS:  # the roof; or homeless, which is found elsewhere
        return []
    found = []
    for line, name in imports(module, source):
        if not is_within(name, "delaygrad"):
            continue
        target = [*name.split("."), ""][1]
        if target not in FLOORS:
            found.append(f"{module}:{line} imports {name}, which is in no room; name the room")
        elif target != room and FLOORS[target] >= FLOORS[room]:
            found.append(
                f"{module}:{line} imports {name}: {room} (floor {FLOORS[room]}) must not know"
                f" {target} (floor {FLOORS[target]})"
            )
    return found


def torch_violations(module: Path, source: str) -> list[str]:
    room = room_of(module)
    found = []
    for line, name in [*imports(module, source), *attributes(source)]:
        if room in MUST_NOT_USE_TORCH and is_within(name, "torch"):
            found.append(f"{module}:{line} uses {name}; {room} is pure Python")
        if room not in MAY_USE_TORCH_DISTRIBUTED and is_within(name, "torch.distributed"):
            found.append(
                f"{module}:{line} uses {name}; it belongs in transport/, runtime/ or launch/"
            )
    return found


def name_violations(module: Path) -> list[str]:
    found = []
    if room_of(module) not in {ROOF, *FLOORS}:
        found.append(f"{module} stands on no floor; put it in a room: {', '.join(FLOORS)}")
    found += [
        f"{module}: no {part}.py; name it after the thing its functions belong to"
        for part in FORBIDDEN_NAMES & {part.removesuffix(".py") for part in module.parts}
    ]
    return found


def test_the_package_is_where_the_checks_look() -> None:
    assert MODULES, f"no Python file under {PACKAGE}"


@pytest.mark.parametrize("violations", [direction_violations, torch_violations])
def test_imports_point_to_lower_floors_and_torch_stays_where_it_may_be_used(
    violations: Callable[[Path, str], list[str]],
) -> None:
    found = [line for m in MODULES for line in violations(m, (PACKAGE / m).read_text())]
    assert not found, "\n".join(["", *found])


def test_modules_stand_on_a_floor_under_a_telling_name() -> None:
    found = [line for module in MODULES for line in name_violations(module)]
    assert not found, "\n".join(["", *found])


# The checks themselves: each planted violation must be found, each lawful line must pass.


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("schedule/actions.py", "from delaygrad.stage import Stage"),
        ("schedule/actions.py", "import delaygrad.runtime.local as local"),
        ("schedule/actions.py", "from delaygrad import methods"),
        ("schedule/actions.py", "from delaygrad.stash import Stash"),  # same floor, another room
        ("schedule/actions.py", "from ..partition import balance"),
        ("schedule/actions.py", "from .. import partition"),
        ("schedule/actions.py", "def f():\n    from delaygrad.cli import main"),
        ("schedule/deep/er.py", "from ...stage import Stage"),
        ("stash.py", "from .records import Record"),
        ("data/digits.py", "from delaygrad.models import resnet"),
        ("errors.py", "from delaygrad.data import digits"),
        ("training/loop.py", "from delaygrad.results import figures"),
        ("training/loop.py", "from delaygrad import LocalPipeline"),
        ("training/loop.py", "import delaygrad as dg"),
        ("training/loop.py", "from delaygrad import *"),
    ],
)
def test_import_in_a_wrong_direction_is_found(module: str, source: str) -> None:
    assert len(direction_violations(Path(module), source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("__init__.py", "from delaygrad.cli import main\nfrom .runtime import LocalPipeline"),
        ("schedule/__init__.py", "from .actions import Action\nfrom delaygrad import errors"),
        ("schedule/actions.py", "from delaygrad.schedule.timetable import f\nfrom . import g"),
        ("data/digits.py", "from delaygrad.errors import DataError"),
        ("stage.py", "from delaygrad.stash import Stash\nfrom .methods import DDG"),
        ("cli/main.py", "from ..training.loop import train\nimport delaygrad.results.figures"),
        ("stash.py", "import delaygradually, torch"),
    ],
)
def test_import_of_a_lower_floor_or_the_own_room_is_lawful(module: str, source: str) -> None:
    assert not direction_violations(Path(module), source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed",
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed import send",
        "from torch.distributed.pipelining import pipeline",
        "def f():\n    torch.distributed.barrier()",
    ],
)
def test_torch_distributed_outside_its_rooms_is_found(source: str) -> None:
    assert torch_violations(Path("stage.py"), source)
    assert torch_violations(Path("__init__.py"), source)
    assert not torch_violations(Path("transport/process_group.py"), source)
    assert not torch_violations(Path("runtime/distributed.py"), source)


def test_any_torch_in_schedule_is_found() -> None:
    for source in ("import torch", "from torch import nn", "import torch.nn.functional as F"):
        assert torch_violations(Path("schedule/actions.py"), source)
        assert not torch_violations(Path("stage.py"), source)
    assert not torch_violations(Path("schedule/actions.py"), "import torchlight")


def test_nameless_or_homeless_module_is_found() -> None:
    assert name_violations(Path("engine/core.py"))
    assert name_violations(Path("runtime/utils.py"))
    assert name_violations(Path("runtime/helpers/x.py"))
    assert not name_violations(Path("runtime/local.py"))
    assert not name_violations(Path("errors.py"))


def test_violation_says_where_what_and_which_floors() -> None:
    source = textwrap.dedent("""
        import math
        from delaygrad.runtime.local import LocalPipeline
    """)
    assert direction_violations(Path("stage.py"), source) == [
        "stage.py:3 imports delaygrad.runtime.local.LocalPipeline: stage (floor 3) must not know"
        " runtime (floor 4)"
    ]
