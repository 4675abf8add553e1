"""What the README says must run as it stands."""

import re
import runpy
import shlex
import warnings
from pathlib import Path

import pytest
import torch

import delaygrad as dg
from delaygrad.cli import main as command_line
from delaygrad.reproduce.paper import load_target

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
PAGES = {**DOCS, "docs/README.md": DOCS["README.md"], "README.md": README}


def test_python_example_runs_and_saves_a_model_with_the_unsplit_names(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 16
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")

    names = runpy.run_path("example.py")

    assert names["loss"] < 1.0
    saved = torch.load("model.pt", weights_only=True)
    assert list(saved) == list(names["model"].state_dict())


def commands_of(page):
    """The commands in the indented blocks of a page, and those within its sentences."""
    code = re.sub(r"\\\n\s+", "", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.S | re.M))
    known = "|".join(command_line.COMMANDS)
    shown = re.findall(rf"^    .*?\bdelaygrad ((?:{known})\b[^#\n]*)", code, re.MULTILINE)
    return shown, re.findall(rf"`delaygrad ((?:{known})\b[^`]*)`", code)


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_flags_that_exist(page, capsys):
    shown, mentioned = commands_of(page)
    for command in shown + mentioned:
        name, *arguments = shlex.split(command)
        given = arguments if command in shown else []  # a sentence may say --method NAME
        with warnings.catch_warnings(), pytest.raises(SystemExit) as exit_info:
            command_line.main([name, *given, "--help"])
        assert exit_info.value.code in (0, None)
        help_text = capsys.readouterr().out
        for flag in (argument for argument in arguments if argument.startswith("--")):
            assert flag in help_text, f"{flag} is not a flag of {name}"


def test_commands_are_found():
    least = {"README.md": 6, "quickstart.md": 8, "multi-host.md": 2, "semantics.md": 1}
    for page, number in least.items():
        assert sum(map(len, commands_of(page))) >= number


def test_scripts_in_the_docs_exist_with_their_flags():
    found = [
        command
        for text in PAGES.values()
        for command in re.findall(
            r"^    (?!#).*?((?:benchmarks|examples|experiments)/.*)$", text, re.M
        )
    ]
    assert len(found) >= 4
    for command in found:
        path, *arguments = command.split()
        if "*" in path or "$" in path or (ROOT / path).is_dir():  # where a module writes
            continue
        source = (ROOT / path).read_text(encoding="utf-8")
        for flag in (argument for argument in arguments if argument.startswith("--")):
            names = (flag, flag.removeprefix("--").replace("-", "_"))
            assert any(name in source for name in names), command


def test_target_in_the_docs_plans_the_runs_that_it_names(tmp_path):
    docs = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", docs, re.DOTALL)
    folder = tmp_path / "mypaper-depth"
    folder.mkdir()
    (folder / "target.toml").write_text(example, encoding="utf-8")
    runs = load_target(folder, "mypaper").plan("smoke", tmp_path, None)
    assert len(runs) == 2 * 3 + 1
    for run in runs:
        run.config.check()


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith("http"):
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                headings = re.findall(
                    r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE
                )
                anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
                assert anchor in anchors, f"{page.name}: {link}"
    assert len(README.split()) < 900


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.[mh][dt]*"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_every_public_name_has_its_page_on_the_site():
    site = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    pages = site["reference"]()
    for name in dg.__all__:
        assert (
            f"auto{'class' if isinstance(getattr(dg, name), type) else 'function'}::"
            in (pages[f"delaygrad.{name}"])
        )
    for method in dg.methods.METHODS.values():
        name = method.__name__
        assert f"delaygrad.{name}" in pages or f"delaygrad.methods.{name}" in pages
    assert {"delaygrad.theory.promise", "delaygrad.methods.axes.Predicted"} <= set(pages)


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## Where is it?") : text.index("## Tests")]
    paths = re.findall(r"`([\w./-]+(?:/|\.py|\.md|\.toml))`", section)
    assert len(paths) >= 30
    for path in paths:
        places = (ROOT / path, ROOT / "src" / "delaygrad" / path)
        assert any(place.exists() for place in places), path


def test_floors_in_contributing_are_those_that_are_enforced():
    floors = runpy.run_path(str(ROOT / "tests" / "unit" / "test_house.py"))["FLOORS"]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d|ground) \| (`.*) \|$", text, re.MULTILINE)
    written = {
        room: -1 if floor == "ground" else int(floor)
        for floor, rooms in rows
        for room in re.findall(r"`(\w+)`", rooms)
    }
    assert written == {room: floor for room, floor in floors.items() if room != "__main__"}
