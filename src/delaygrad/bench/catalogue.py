"""Contestants by name."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch

from delaygrad.bench.contestant import Entry, Family
from delaygrad.bench.loops import Backpropagation, DataParallel, Delayed
from delaygrad.bench.pipelining import SCHEDULES, TorchPipeline
from delaygrad.errors import ConfigError

MICRO_BATCHES = (2, 4, 8, 16)
_PIPELINES = tuple(f"{name}-m{m}" for name in ("gpipe", "1f1b") for m in MICRO_BATCHES)
_CHUNKED = tuple(f"{name}-m{m}" for name in ("interleaved", "zb", "zbv") for m in (4, 8))

EVERYONE = (
    "bp", "bp-all", "bp-compile", "bp-compile-all", "ceiling", *_PIPELINES, *_CHUNKED,
    "ddp", "ddg", "ddg-slack1",
)  # fmt: skip

# Nothing to compile; the zero-bubble schedules, which run a backward in two halves, would make
# these layers sleep twice; a sleeping process leaves the others alone, so there is no ceiling.
SLEEPERS = (
    "bp", *_PIPELINES, *(name for name in _CHUNKED if name.startswith("interleaved")),
    "ddp", "ddg", "ddg-slack1",
)  # fmt: skip

_COMPILED = partial(Backpropagation, compiled=True)
_SOLO = {
    entry.name: entry
    for entry in (
        Entry("bp", "BP, 1 thread", "bp", Backpropagation, alone=True),
        Entry("bp-all", "BP, all threads", "bp", Backpropagation, alone=True, all_cores=True),
        Entry("bp-compile", "BP, torch.compile, 1 thread", "bp", _COMPILED, alone=True),
        Entry(
            "bp-compile-all", "BP, torch.compile, all threads", "bp", _COMPILED,
            alone=True, all_cores=True,
        ),
        Entry(
            "ceiling", "ceiling: a BP on every rank, independent", "ceiling", Backpropagation,
            independent=True,
        ),
        Entry("ddp", "DDP", "ddp", DataParallel),
        Entry("ddp-fp16", "DDP, gradients in fp16", "ddp", partial(DataParallel, compressed=True)),
    )
}  # fmt: skip

# Pattern -> option, its value where the pattern has no number, and the title's words.
_DDG_OPTIONS: dict[str, tuple[str, Any, str]] = {
    r"slack(\d+)": ("slack", None, "slack {}"),
    r"m(\d+)": ("micro_batches", None, "{} micro-batches"),
    r"bf16": ("boundary_dtype", torch.bfloat16, "bf16 between stages"),
    r"stash16": ("stash_dtype", torch.bfloat16, "bf16 stash"),
    r"recompute": ("recompute", True, "recomputing"),
}


def entry(name: str) -> Entry:
    """Look a contestant up.

    Args:
        name: one of ``EVERYONE``, or ``<schedule>-m<micro-batches>``, or ``ddg`` followed by any of
            ``-slack<n>``, ``-m<micro-batches>``, ``-bf16``, ``-stash16`` and ``-recompute``.

    Raises:
        ConfigError: there is none of this name.

    Example:
        >>> entry("1f1b-m8").title, entry("ddg-slack1-bf16").title
        ('1F1B, 8 micro-batches', 'DDG, slack 1, bf16 between stages')
    """
    if name in _SOLO:
        return _SOLO[name]
    if match := re.fullmatch(rf"({'|'.join(SCHEDULES)})-m([1-9]\d*)", name):
        schedule, count = SCHEDULES[match[1]], int(match[2])
        start = partial(TorchPipeline, schedule=schedule, num_micro_batches=count)
        title = f"{schedule.title}, {count} micro-batches"
        family: Family = "ddg" if match[1] == "scheduleddg" else "pipeline"
        return Entry(name, title, family, start, chunked=schedule.chunks > 1)
    first, *options = name.split("-")
    if first == "ddg":
        parsed = [_ddg_option(name, option) for option in options]
        given = {key: value for key, value, _ in parsed}
        title = ", ".join(["DDG", *(words for _, _, words in parsed)])
        return Entry(name, title, "ddg", partial(Delayed, **given))
    raise _unknown(name)


def _ddg_option(name: str, option: str) -> tuple[str, Any, str]:
    for pattern, (key, value, words) in _DDG_OPTIONS.items():
        if match := re.fullmatch(pattern, option):
            value = int(match[1]) if match.groups() else value
            return key, value, words.format(*match.groups())
    raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"unknown contestant ({name}); use {', '.join(_SOLO)}, "
        f"{', '.join(f'{schedule}-m4' for schedule in SCHEDULES)} (any number of micro-batches), "
        "ddg, or ddg with -slack1, -m4, -bf16, -stash16, -recompute"
    )
