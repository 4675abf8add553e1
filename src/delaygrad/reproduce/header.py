"""What every target says, whatever kind it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from delaygrad.reproduce.published import Published


@dataclass(frozen=True, kw_only=True)
class Header:
    """The beginning of a ``target.toml``.

    Attributes:
        title: what the figure or table shows.
        kind: training: runs; speed: contests of throughput; memory: peaks.
        reference: the paper, and which figure or table of it.
        published: what there is to compare with.
        reading: what was found, in words, written after the runs; for the page of the paper.
    """

    title: str
    kind: Literal["training", "speed", "memory"]
    reference: str
    published: tuple[Published, ...] = ()
    reading: str = ""
