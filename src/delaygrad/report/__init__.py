"""Figures drawn from records alone."""

from delaygrad.report.curves import draw_curves

__all__ = ["draw_curves"]
