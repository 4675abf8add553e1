"""Which batch goes forward and which goes backward, stage by stage: pure values, no torch."""

from delaygrad.schedule.action import Action, Kind
from delaygrad.schedule.render import render
from delaygrad.schedule.schedule import FLUSH, LOCKED, Schedule, flush, locked, unlocked
from delaygrad.schedule.validation import validate

__all__ = [
    "FLUSH",
    "LOCKED",
    "Action",
    "Kind",
    "Schedule",
    "flush",
    "locked",
    "render",
    "unlocked",
    "validate",
]
