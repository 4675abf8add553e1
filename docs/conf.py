"""The site: the pages of this folder, and one page for each public name. Run: make docs."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import delaygrad

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
ROOMS = [
    "delaygrad",
    *(f"delaygrad.{room}" for room in ("methods", "methods.axes", "schedule", "planning")),
    *(f"delaygrad.{room}" for room in ("data", "launch", "results", "records", "theory")),
]
SECTIONS = {"Args:", "Attributes:", "Returns:", "Yields:", "Raises:", "Example:", "References:"}

project, version = "delaygrad", delaygrad.__version__
root_doc = "README"
exclude_patterns = ["_build"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_ivar = True
napoleon_use_rtype = False
html_theme = "furo"
html_title = f"delaygrad {version}"
html_copy_source = html_show_copyright = False
html_math_renderer = "mathml"


def public(module: ModuleType) -> dict[str, object]:
    """Return what a room offers; the methods also from their own files."""
    offered = {name: getattr(module, name) for name in module.__all__}
    if module.__name__ == "delaygrad.methods":
        offered |= {method.__name__: method for method in module.METHODS.values()}
    return offered


def public_names() -> dict[str, list[str]]:
    """Return the public names of each room; a name that two rooms offer belongs to the first."""
    found: dict[str, list[str]] = {}
    taken: list[object] = []
    for room in ROOMS:
        offered = public(importlib.import_module(room)).items()
        found[room] = [name for name, value in offered if not any(value is t for t in taken)]
        taken += [value for _, value in offered]
    return found


def reference() -> dict[str, str]:
    """Return the pages of the reference by their names: each room, and each public name."""
    found: dict[str, str] = {}
    for room, names in public_names().items():
        module = importlib.import_module(room)
        found |= {f"{room}.{name}": page(room, name, module) for name in names}
        pages = "".join(f"   {room}.{name}\n" for name in names)
        contents = f".. toctree::\n   :maxdepth: 1\n\n{pages}"
        found[room] = f"{heading(room)}.. automodule:: {room}\n\n{contents}"
    return found


def write_reference(app: Sphinx) -> None:
    """Write the reference for this build."""
    folder = HERE / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in reference().items():
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")


def page(room: str, name: str, module: ModuleType) -> str:
    """Return the page of one name."""
    value = public(module)[name]
    kind, more, place = "function", "", room
    if inspect.isclass(value):
        kind, more = "class", "   :members:\n   :show-inheritance:\n"
        if issubclass(value, delaygrad.LocalPipeline | delaygrad.DistributedPipeline):
            more += "   :inherited-members:\n"
    elif not callable(value):  # documented where it is assigned
        kind, more, modules = "data", "   :no-value:\n", list(sys.modules.items())
        places = (m for m, found in modules if m.startswith(room) and assigns(found, name))
        place = next(places, room)
    elif not hasattr(module, name):
        place = value.__module__
    return f"{heading(name)}.. auto{kind}:: {place}.{name}\n{more}"


def assigns(module: ModuleType, name: str) -> bool:
    """Say whether a module assigns a name."""
    return bool(re.search(rf"^{name}(:.*)? = ", inspect.getsource(module), re.MULTILINE))


def heading(text: str) -> str:
    """Return a heading of the reference."""
    return f"{text}\n{'=' * len(text)}\n\n"


def fit_to_site(app: Sphinx, page: str, text: list[str]) -> None:
    """Make text of links to files outside the site; the first page lists the others."""
    text[0] = re.sub(r"(?<!!)\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", text[0])
    if page == root_doc:
        listed = re.findall(r"\[([^\]]*)\]\((\S+)\.md\)", text[0])
        pages = [f"{title} <{name}>" for title, name in listed]
        reference = [f"api/{room}" for room in ROOMS]
        for caption, names in (("Pages", pages), ("Reference", reference)):
            entries = "\n".join(names)
            text[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def fit_docstring(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Show indented blocks outside of sections as they are; ``|`` and a lone ``*`` are letters."""
    fitted: list[str] = []
    in_section = in_block = False
    for line in lines:
        if line[:1].strip():
            in_section, in_block = line.rstrip() in SECTIONS, False
        elif line.startswith("    ") and not in_section and not in_block:
            fitted += ["", "::", ""]
            in_block = True
        lone = r"\||\*(?=\w)" if line.count("*") == 1 else r"\|"  # (B, *sample_shape)
        escaped = re.sub(rf"(``.*?``)|({lone})", lambda found: found[1] or rf"\{found[2]}", line)
        fitted.append(line if in_block else escaped)
    lines[:] = fitted


def show_formula(page: HTML5Translator, formula: Element) -> None:
    """Write a formula as MathML, which browsers show without a script from the network."""
    from docutils.nodes import SkipNode, math_block
    from docutils.utils.math.latex2mathml import tex2mathml

    tex = re.sub(r"\\[bB]ig\b", "", formula.astext()).replace(r"\dots", r"\ldots")
    block = isinstance(formula, math_block)
    written = tex2mathml(tex, as_block=block)
    page.body.append(f'<div style="padding: 0.3em 0">{written}</div>' if block else written)
    raise SkipNode


def copy_first_page(app: Sphinx, failure: Exception | None) -> None:
    """Make the first page the one that a folder's address shows."""
    if failure is None:
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Connect the functions of this file."""
    renderers = (show_formula, None)
    app.add_html_math_renderer("mathml", inline_renderers=renderers, block_renderers=renderers)
    app.connect("builder-inited", write_reference)
    app.connect("source-read", fit_to_site)
    app.connect("autodoc-process-docstring", fit_docstring, priority=400)  # before napoleon
    app.connect("build-finished", copy_first_page)
