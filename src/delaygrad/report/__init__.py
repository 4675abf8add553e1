"""Figures and pages made from records alone."""

from delaygrad.report.accuracy import accuracy_json
from delaygrad.report.chrome_trace import chrome_trace, write_chrome_trace
from delaygrad.report.curves import draw_curves
from delaygrad.report.html_page import render_page, write_page
from delaygrad.report.run_group import RunGroup, group_runs
from delaygrad.report.run_record import RunRecord, read_run, read_runs
from delaygrad.report.run_report import run_page, run_sections, write_report
from delaygrad.report.timeline import draw_timeline

__all__ = [
    "RunGroup",
    "RunRecord",
    "accuracy_json",
    "chrome_trace",
    "draw_curves",
    "draw_timeline",
    "group_runs",
    "read_run",
    "read_runs",
    "render_page",
    "run_page",
    "run_sections",
    "write_chrome_trace",
    "write_page",
    "write_report",
]
