"""Every Python block of docs/ runs as it stands, one page after the other in a fresh process.

A page is one program: its blocks from top to bottom, in one namespace. What a block needs and does
not show stands above it in a comment that no reader sees, and what it must reach below it:

    <!-- run
    batches = [...]
    -->

A page with the comment ``<!-- ranks: 2 -->`` runs on two ranks.
"""

import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from ranks import run_ranks

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```|^<!-- run\n(.*?)^-->", re.DOTALL | re.MULTILINE)
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}
PROGRAMS = [name for name, text in PAGES.items() if BLOCK.search(text)]


def run_page(rank: int, world_size: int, name: str, text: str, folder: str) -> None:
    os.chdir(folder)
    torch.manual_seed(0)
    page = sys.modules["page"] = ModuleType("page")
    for block in BLOCK.finditer(text):
        above = text[: block.start()].count("\n") + 1
        code = "\n" * above + (block[1] or block[2])  # tracebacks show the line of the page
        exec(compile(code, name, "exec"), vars(page))


@pytest.mark.parametrize("name", PROGRAMS)
def test_blocks_of_a_page_run(name, tmp_path):
    text = PAGES[name]
    ranks = re.search(r"^<!-- ranks: (\d) -->$", text, re.MULTILINE)
    run_ranks(run_page, int(ranks[1]) if ranks else 1, args=(name, text, str(tmp_path)))


def test_python_stands_in_marked_blocks():
    statement = re.compile(
        r"^    (?:from [\w.]+ import|import \w|with \w|for \w+ in .*:$|def |class |print\("
        r"|\w+ = dg\.|(?:pipe|dg)\.\w+)"
    )
    for name, text in PAGES.items():
        plain = re.sub(r"^```.*?^```|^<!-- run.*?^-->", "", text, flags=re.DOTALL | re.MULTILINE)
        found = [line for line in plain.splitlines() if statement.match(line)]
        assert not found, f"{name}: mark as a block of python: {found}"
