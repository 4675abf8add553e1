"""Figures and tables of papers, from a description of what to run to what came out."""

from delaygrad.reproduce.paper import Reproduction, reproduce, status

__all__ = ["Reproduction", "reproduce", "status"]
