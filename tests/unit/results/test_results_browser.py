"""A real browser shows the page: on a phone and on a desk, light and dark, from the file alone.

The page is shown as it is, in a frame of another page that measures it from outside.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import running
from recorded_runs import record_run

from delaygrad.results import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE, DESK = 390, 1280  # pixels
COLOURS = {  # of paper, of text, of the first line of the first series
    "light": ["rgb(252, 252, 250)", "rgb(27, 33, 39)", "rgb(72, 82, 93)"],
    "dark": ["rgb(20, 23, 27)", "rgb(229, 232, 235)", "rgb(183, 192, 202)"],
}

FRAME = """<!DOCTYPE html><meta charset="utf-8">
<iframe id="frame" width="WIDTH" height="900" style="border: 0" src="PAGE"></iframe>
<pre id="found"></pre>
<script>
addEventListener("load", () => {
  const view = frame.contentWindow, page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.body.querySelectorAll("*")].filter(
    (e) => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest(".scroll"));
  const letters = [...page.querySelectorAll("main svg text")].map(
    (e) => parseFloat(view.getComputedStyle(e).fontSize) * e.getScreenCTM().a);
  const shown = [...page.querySelectorAll("main svg")].map((e) => e.getBoundingClientRect());
  found.textContent = JSON.stringify({
    width: root.clientWidth,
    scrollWidth: root.scrollWidth,
    wide: wide.map((e) => e.outerHTML.slice(0, 80)),
    scrolling: [...page.querySelectorAll(".scroll")].map((e) => e.scrollWidth > e.clientWidth),
    paper: view.getComputedStyle(page.body).backgroundColor,
    ink: view.getComputedStyle(page.body).color,
    line: view.getComputedStyle(page.querySelector('svg [style*="--s0"]')).stroke,
    requested: view.performance.getEntriesByType("resource").map((e) => e.name),
    smallest: Math.min(...letters),
    drawings: shown.filter((box) => box.width > 0 && box.height > 0).length,
    empty: shown.filter((box) => box.width === 0 || box.height === 0).length,
    heading: page.querySelector("h1").textContent,
  });
});
</script>
"""


@pytest.fixture(scope="session")
def browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser is installed (looked for: {', '.join(NAMES)})")
    return found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    runs = [
        record_run(tmp_path / "bp-with-a-long-name-0", method="bp", accuracy=0.8),
        record_run(tmp_path / "bp-with-a-long-name-1", method="bp", accuracy=0.79, seed=1),
        record_run(
            tmp_path / "ddg", stages=4, runtime="distributed", trace=True, direction=True,
            cuts=["a_layer_with_a_very_long_name.of_a_block.of_many", "b", "c"],
        ),
        record_run(tmp_path / "live", stages=4, weights="live", until=20, diverged=True),
    ]  # fmt: skip
    return write_report(runs, tmp_path / "report.html")


def look(browser: str, page: Path, width: int, theme: str = "light") -> dict[str, Any]:
    """Show a page in a window of so many pixels and measure it."""
    frame = page.with_name(f"frame-{page.stem}.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)).replace("PAGE", page.as_uri()))
    command = (
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--hide-scrollbars",
        f"--user-data-dir={page.parent / 'profile'}",
        "--allow-file-access-from-files",  # to the measuring page alone
        f"--blink-settings=preferredColorScheme={'light dark'.split().index(theme) ^ 1}",
        "--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom", frame.as_uri(),
    )  # fmt: skip
    with running(*command) as process:
        out, err = process.communicate(timeout=60)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', out, re.DOTALL) or [""]
    assert found, f"the browser measured nothing\n{err[-2000:]}"
    measured: dict[str, Any] = json.loads(html.unescape(found))
    return measured


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_page_fits_and_asks_for_nothing(browser: str, page: Path, width: int, theme: str) -> None:
    found = look(browser, page, width, theme)
    assert found["heading"] == "ResNet-8 on CIFAR-10"
    assert found["width"] == found["scrollWidth"] == width
    assert found["wide"] == []
    assert found["requested"] == []
    assert [found["paper"], found["ink"], found["line"]] == COLOURS[theme]
    assert found["drawings"] == 12 and found["empty"] == 0
    assert found["smallest"] >= 9.5  # pixels, of letters in drawings
    assert any(found["scrolling"]) is (width == PHONE)  # tables and timeline, within themselves


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine: its address, and what it is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", asked
        listening.shutdown()
        thread.join()


def test_what_overflows_or_is_fetched_would_be_found(
    browser: str, page: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    planted = f'<div style="width: 2000px">wide</div><img alt="" src="{address}/x.png">'
    content = page.read_text(encoding="utf-8").replace("</main>", f"{planted}</main>")
    bad = page.with_name("bad.html")
    bad.write_text(content, encoding="utf-8")
    found = look(browser, bad, PHONE)
    assert found["scrollWidth"] >= 2000 and len(found["wide"]) == 1
    assert found["requested"] == [f"{address}/x.png"]
    assert asked == []  # for the page's own policy forbids it
    bad.write_text(re.sub("<meta http-equiv[^>]*>", "", content), encoding="utf-8")
    look(browser, bad, PHONE)
    assert asked == ["/x.png"]
