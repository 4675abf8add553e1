"""Predict, before it is trained, how a network will run as K stages: time, memory, messages.

The room is named after what it does, as ``delaygrad.plan`` is the function.
"""

from delaygrad.planning.forecast import Forecast as Forecast
from delaygrad.planning.link import Link as Link
from delaygrad.planning.planner import Plan as Plan
from delaygrad.planning.planner import plan as plan

__all__ = ["Forecast", "Link", "Plan", "plan"]
