"""What runs show: one reader, one grouping, one statistics, one set of figures, one page."""

from delaygrad.results.figure import Panel, write_png
from delaygrad.results.group import RunGroup, group_runs
from delaygrad.results.page import render_page, write_page
from delaygrad.results.report import draw_run, draw_trace, run_page, run_sections, write_report
from delaygrad.results.run import Run, read_run, read_runs
from delaygrad.results.timeline import chrome_trace, timeline_panel, write_chrome_trace

__all__ = [
    "Panel",
    "Run",
    "RunGroup",
    "chrome_trace",
    "draw_run",
    "draw_trace",
    "group_runs",
    "read_run",
    "read_runs",
    "render_page",
    "run_page",
    "run_sections",
    "timeline_panel",
    "write_chrome_trace",
    "write_page",
    "write_png",
    "write_report",
]
