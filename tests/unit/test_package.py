"""The package: the library needs torch, NumPy and safetensors; the extras bring the rest."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from delaygrad.__main__ import PACKAGES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {"torch", "numpy", "safetensors"}
WITHOUT_EXTRAS = f"import sys; sys.modules.update(dict.fromkeys({sorted(PACKAGES)}))\n"


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[><=\[ ]", requirement)[0] for requirement in requirements}


def test_extras_are_what_the_command_line_looks_for():
    assert names(PROJECT["dependencies"]) == CORE
    assert names(PROJECT["optional-dependencies"]["cli"]) == set(PACKAGES.values())


def test_every_import_is_of_a_required_package_or_of_the_extra():
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
    # markupsafe comes with jinja2.
    assert found - sys.stdlib_module_names <= {"delaygrad", "markupsafe", *CORE, *PACKAGES}


@pytest.fixture(scope="module")
def core_alone() -> list[str]:
    """What a process prints in which no package of the extras can be imported."""
    program = WITHOUT_EXTRAS + (
        "import delaygrad as dg, delaygrad.theory\n"
        "from delaygrad.data import load\n"
        "import torch\n"
        "plan = dg.plan(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)),\n"
        "               torch.ones(4, 3))\n"
        "print(len(plan.to_json()['plans']))\n"
        "for use in (lambda: str(plan), lambda: load('digits')):\n"
        "    try:\n"
        "        use()\n"
        "    except dg.ConfigError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_core_alone_imports_and_plans_and_names_what_is_missing(core_alone):
    assert core_alone == [
        "1",
        "a printed plan needs rich; pip install 'delaygrad[cli]'",
        "the data set digits needs scikit-learn; pip install 'delaygrad[cli]'",
    ]


def test_command_line_names_the_missing_packages_and_the_extra(monkeypatch):
    from delaygrad import __main__ as door

    lacking = {"matplotlib", "sklearn"}
    monkeypatch.setattr(door, "find_spec", lambda name: None if name in lacking else name)
    with pytest.raises(SystemExit) as exit_info:
        door.main()
    assert exit_info.value.code == (
        "delaygrad: the command line needs matplotlib, scikit-learn; pip install 'delaygrad[cli]'"
    )
