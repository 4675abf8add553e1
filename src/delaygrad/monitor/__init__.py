"""What staleness does to each stage's gradients, measured while a pipeline trains."""

from delaygrad.monitor.monitor import Monitor, Row

__all__ = ["Monitor", "Row"]
