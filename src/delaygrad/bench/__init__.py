"""Contests of throughput: delayed gradients against what a user would pick instead."""

from delaygrad.bench.config import ContestConfig
from delaygrad.bench.contest import run_contest

__all__ = ["ContestConfig", "run_contest"]
