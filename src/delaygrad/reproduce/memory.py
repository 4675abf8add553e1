"""Measure memory against K, and compare it with the formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from delaygrad.bench.memory import (
    balanced_cuts,
    measure_peaks,
    measure_total_on_gpu,
    predict_peaks,
)
from delaygrad.reproduce.measured_case import kept_or_measured
from delaygrad.reproduce.memory_target import MemoryLine, MemoryTarget

Say = Callable[[str], None]


def measure_memory(
    target: MemoryTarget, scale: str, folder: Path, say: Say, *, new: bool = True
) -> list[dict[str, Any]]:
    """Measure the cases that have not been measured yet.

    Args:
        target: says what and where to cut.
        scale: by name.
        folder: that the results go to, each as soon as it is there.
        say: is told what happens.
        new: measure; False: only what is there.

    Returns:
        For each case a row, in plain values: ``measured_bytes`` and ``predicted_bytes``, the
        totals; the same by stage (``stages``; none on a GPU); and ``over_one_stage``, the measured
        total over that of K = 1 of the same line. Where there is no GPU, ``does_not_run`` says so.
    """
    rows: list[dict[str, Any]] = []
    for line, num_stages in target.scales[scale].cases():
        cuts = target.cuts_of(line, num_stages)
        names = {
            "model": line.model,
            "batch_size": line.batch_size,
            "method": line.method,
            "variant": line.variant,
            "device": line.device,
            "num_stages": num_stages,
        }
        if line.device == "cuda" and not torch.cuda.is_available():
            rows.append({**names, "does_not_run": "needs a GPU (found: none)"})
            continue
        name = line.name(num_stages)
        measure = partial(_measure, line, num_stages, cuts, say) if new else None
        measured = kept_or_measured(folder, name, line.settings(num_stages, cuts), measure)
        if measured:
            rows.append({**names, **{key: measured[key] for key in _KEYS}})
    _compare(rows)
    return rows


_KEYS = ("cuts", "measured_bytes", "predicted_bytes", "stages")


def _measure(
    line: MemoryLine, num_stages: int, known_cuts: tuple[str, ...] | None, say: Say
) -> dict[str, Any]:
    say(f"memory of {line.name(num_stages)}")
    case = line.case(num_stages)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cuts = balanced_cuts(case) if known_cuts is None else list(known_cuts)
        predicted = predict_peaks(case, cuts)
        measured: list[int] = []
        if line.device == "cpu":
            measured = [peaks.tensors_bytes for peaks in measure_peaks(case, cuts)]
        total = sum(measured) if measured else measure_total_on_gpu(case, cuts)
    finally:
        torch.set_num_threads(threads)
    return {
        "cuts": cuts,
        "measured_bytes": total,
        "predicted_bytes": sum(memory.total_bytes for memory in predicted),
        "stages": [
            {
                "measured_bytes": measured[k] if measured else None,
                "predicted_bytes": memory.total_bytes,
                "parts_bytes": dict(vars(memory)),
            }
            for k, memory in enumerate(predicted)
        ],
    }


def _compare(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row its total over that of one stage."""
    ones = {
        (row["model"], row["batch_size"], row["device"]): row["measured_bytes"]
        for row in rows
        if row["num_stages"] == 1 and "measured_bytes" in row
    }
    for row in rows:
        one = ones.get((row["model"], row["batch_size"], row["device"]))
        known = one and "measured_bytes" in row
        row["over_one_stage"] = round(row["measured_bytes"] / one, 3) if known else None
