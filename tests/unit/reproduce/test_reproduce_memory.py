"""Rows of memory, from measurements that are on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from delaygrad.methods import DDG
from delaygrad.reproduce.measured_case import kept_or_measured
from delaygrad.reproduce.memory import measure_memory
from delaygrad.reproduce.memory_target import MemoryLine, MemoryScale, MemoryTarget


def target(*lines: MemoryLine, **more: Any) -> MemoryTarget:
    scale = MemoryScale(about="", lines=lines)
    return MemoryTarget(title="", kind="memory", reference="", scales={"smoke": scale}, **more)


def test_totals_are_compared_with_one_stage_of_the_same_network(tmp_path: Path) -> None:
    line = MemoryLine(model="resnet8", stages=(1, 2), batch_size=4)
    again = MemoryLine(model="resnet8", stages=(2,), batch_size=4, options={"recompute": True})
    what = target(line, again, cuts={"resnet8": {"2": ("group2_block1",)}})
    for (own, k), total in zip(what.scales["smoke"].cases(), (100, 150, 80), strict=True):
        found = {"cuts": [], "measured_bytes": total, "predicted_bytes": 90, "stages": []}
        settings = own.settings(k, what.cuts_of(own, k))
        kept_or_measured(tmp_path, own.name(k), settings, lambda found=found: found)
    rows = measure_memory(what, "smoke", tmp_path, print, new=False)
    assert [(r["num_stages"], r["variant"], r["over_one_stage"]) for r in rows] == [
        (1, "", 1.0), (2, "", 1.5), (2, "recompute", 0.8),
    ]  # fmt: skip


def test_cuts_are_those_of_the_file_or_balanced() -> None:
    line = MemoryLine(model="resnet8", stages=(1, 2, 3))
    what = target(line, cuts={"resnet8": {"2": ("group2_block1",)}})
    assert what.cuts_of(line, 1) == ()
    assert what.cuts_of(line, 2) == ("group2_block1",)
    assert what.cuts_of(line, 3) is None


def test_case_has_the_network_and_the_method() -> None:
    case = MemoryLine(model="resnet8", stages=(2,), batch_size=3, options={"recompute": True}).case(
        2
    )
    network, images, targets = case.make()
    assert network(images).shape == (3, 10)
    assert len(targets) == 3
    assert case.method == DDG(recompute=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told(tmp_path: Path) -> None:
    (row,) = measure_memory(
        target(MemoryLine(model="resnet8", stages=(2,), device="cuda")), "smoke", tmp_path, print
    )
    assert row["does_not_run"] == "needs a GPU (found: none)"
