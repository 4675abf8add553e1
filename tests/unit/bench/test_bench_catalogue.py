from __future__ import annotations

import pytest
import torch

from delaygrad.bench.catalogue import EVERYONE, SLEEPERS, entry
from delaygrad.errors import ConfigError


def test_every_contestant_of_the_defaults_is_known_under_its_own_name() -> None:
    for name in {*EVERYONE, *SLEEPERS}:
        assert entry(name).name == name
    titles = [entry(name).title for name in EVERYONE]
    assert len(set(titles)) == len(titles)


def test_the_issue_s_rivals_are_all_among_the_defaults() -> None:
    rivals = {"bp", "bp-all", "bp-compile-all", "ddp", "ddg", "ceiling"}
    rivals |= {f"{name}-m{m}" for name in ("gpipe", "1f1b") for m in (2, 4, 8, 16)}
    assert rivals <= set(EVERYONE)
    assert {entry(name).family for name in EVERYONE} == {"bp", "ceiling", "pipeline", "ddp", "ddg"}


def test_options_of_ddg_are_read_from_its_name() -> None:
    found = entry("ddg-slack2-m4-bf16-recompute")
    assert found.start.keywords == {  # type: ignore[attr-defined]
        "slack": 2,
        "micro_batches": 4,
        "boundary_dtype": torch.bfloat16,
        "recompute": True,
    }
    assert found.title == "DDG, slack 2, 4 micro-batches, bf16 between stages, recomputing"


def test_only_single_processes_run_alone_and_only_those_named_all_take_every_core() -> None:
    assert {name for name in EVERYONE if entry(name).alone} == {
        "bp", "bp-all", "bp-compile", "bp-compile-all"
    }  # fmt: skip
    assert all(entry(name).all_cores == name.endswith("-all") for name in EVERYONE)


@pytest.mark.parametrize("name", ["", "bpp", "gpipe", "gpipe-m0", "1f1b-m", "ddg-fast", "ddg-"])
def test_unknown_contestant_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown contestant \(.*\); use bp, bp-all"):
        entry(name)
