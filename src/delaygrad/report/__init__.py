"""Figures drawn from records alone."""

from delaygrad.report.chrome_trace import chrome_trace, write_chrome_trace
from delaygrad.report.curves import draw_curves
from delaygrad.report.timeline import draw_timeline

__all__ = ["chrome_trace", "draw_curves", "draw_timeline", "write_chrome_trace"]
