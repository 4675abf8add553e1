"""Figures and tables of papers, from a description of what to run to what came out."""

from delaygrad.reproduce.paper import reproduce, status
from delaygrad.reproduce.request import Reproduction

__all__ = ["Reproduction", "reproduce", "status"]
