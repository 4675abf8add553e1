"""Contestants by name."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch

from delaygrad.bench.backpropagation import Backpropagation
from delaygrad.bench.contestant import Entry
from delaygrad.bench.data_parallel import DataParallel
from delaygrad.bench.delayed import Delayed
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

_SOLO = {
    "bp": Entry(name="bp", title="BP, 1 thread", family="bp", start=Backpropagation, alone=True),
    "bp-all": Entry(
        name="bp-all",
        title="BP, all threads",
        family="bp",
        start=Backpropagation,
        alone=True,
        all_cores=True,
    ),
    "bp-compile": Entry(
        name="bp-compile",
        title="BP, torch.compile, 1 thread",
        family="bp",
        start=partial(Backpropagation, compiled=True),
        alone=True,
    ),
    "bp-compile-all": Entry(
        name="bp-compile-all",
        title="BP, torch.compile, all threads",
        family="bp",
        start=partial(Backpropagation, compiled=True),
        alone=True,
        all_cores=True,
    ),
    "ceiling": Entry(
        name="ceiling",
        title="ceiling: a BP on every rank, independent",
        family="ceiling",
        start=Backpropagation,
        independent=True,
    ),
    "ddp": Entry(name="ddp", title="DDP", family="ddp", start=DataParallel),
    "ddp-fp16": Entry(
        name="ddp-fp16",
        title="DDP, gradients in fp16",
        family="ddp",
        start=partial(DataParallel, compressed=True),
    ),
}

_DDG_OPTIONS = {
    r"slack(\d+)": ("slack", "slack {}"),
    r"m(\d+)": ("micro_batches", "{} micro-batches"),
    r"bf16": ("boundary_dtype", "bf16 between stages"),
    r"stash16": ("stash_dtype", "bf16 stash"),
    r"recompute": ("recompute", "recomputing"),
}
_FLAGS: dict[str, Any] = {
    "boundary_dtype": torch.bfloat16,
    "stash_dtype": torch.bfloat16,
    "recompute": True,
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
        return Entry(
            name=name,
            title=f"{schedule.title}, {count} micro-batches",
            family="pipeline",
            start=partial(TorchPipeline, schedule=schedule, num_micro_batches=count),
            chunked=schedule.chunks > 1,
        )
    first, *options = name.split("-")
    if first == "ddg":
        parsed = [_ddg_option(name, option) for option in options]
        given = {key: value for key, value, _ in parsed}
        title = ", ".join(["DDG", *(words for _, _, words in parsed)])
        return Entry(name=name, title=title, family="ddg", start=partial(Delayed, **given))
    raise _unknown(name)


def _ddg_option(name: str, option: str) -> tuple[str, Any, str]:
    for pattern, (key, words) in _DDG_OPTIONS.items():
        if match := re.fullmatch(pattern, option):
            if match.groups():
                return key, int(match[1]), words.format(match[1])
            return key, _FLAGS[key], words
    raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"unknown contestant ({name}); use {', '.join(_SOLO)}, "
        f"{', '.join(f'{schedule}-m4' for schedule in SCHEDULES)} (any number of micro-batches), "
        "ddg, or ddg with -slack1, -m4, -bf16, -stash16, -recompute"
    )
