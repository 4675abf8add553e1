"""The tables of speed and memory targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from delaygrad.reproduce.published import Published, Sources
from delaygrad.reproduce.text_table import TableSheet, TextTable

_SPEED = (
    "workload", "stages", "K", "method", "speed-up (quartiles)", "ms per iteration", "ms of BP",
    "T_F + T_B / K would be", "slowest stage sends and waits", "published",
)  # fmt: skip
_MEMORY = (
    "network", "batch", "method", "K", "measured, MiB", "formula, MiB", "measured / formula",
    "of one stage", "by stage, MiB",
)  # fmt: skip


def speed_tables(rows: Sequence[dict[str, Any]], published: Sequence[Published]) -> TableSheet:
    """Make the table of ``delaygrad.reproduce.speed.measure_speed``."""
    sources = Sources()
    table = TextTable("", _SPEED, [_speed_cells(row, published, sources) for row in rows])
    notes = [
        "Speed-up: throughput over that of backpropagation in one process with one thread, median "
        "and quartiles of the rounds. Sleeping stages sleep as long as the stages were measured to "
        "compute: what they show is schedule and transport, not computation beside each other."
    ]
    if any(row.get("smoke") for row in rows):
        notes.append("The networks were shrunk: figures without meaning.")
    return TableSheet([table], [*notes, *sources.notes()])


def memory_tables(rows: Sequence[dict[str, Any]]) -> TableSheet:
    """Make the table of ``delaygrad.reproduce.memory.measure_memory``."""
    table = TextTable("", _MEMORY, [_memory_cells(row) for row in rows])
    explained = (
        "Measured: the most that PyTorch's allocator had given out at once, summed over the stages "
        "(on a GPU: of all stages together in one process). Formula: `delaygrad.partition.memory`, "
        "from a measurement of single layers. Of one stage: measured, as a multiple of K = 1; with "
        "uniform stages the activations are (K + 1) / 2 of it."
    )
    return TableSheet([table], [explained])


def _speed_cells(
    row: dict[str, Any], published: Sequence[Published], sources: Sources
) -> list[str]:
    names = [row["workload"], row["how"], str(row["stages"]), row.get("title", row["contestant"])]
    own = [n for n in published if n.stages == row["stages"] and n.quantity == "speedup"]
    own = [n for n in own if n.problem in ("", row["workload"])]
    quoted = "; ".join(sources.quote(number) for number in own) or "-"
    if "does_not_run" in row:
        return [*names, row["does_not_run"], "-", "-", "-", "-", quoted]
    low, high = row["speedup"]["quartiles"]
    share, rule = row["communication_share"], row["paper_rule"]
    return [
        *names,
        f"{row['speedup']['median']:.2f} ({low:.2f} to {high:.2f})",
        f"{1e3 * row['iteration_s']:.1f}",
        f"{1e3 * row['baseline_s']:.1f}",
        "-" if rule is None else f"{rule:.2f}",
        "-" if share is None else f"{share:.1%}",
        quoted,
    ]


def _memory_cells(row: dict[str, Any]) -> list[str]:
    method = " ".join(filter(None, (row["method"].upper(), row["variant"])))
    names = [row["model"], str(row["batch_size"]), method, str(row["num_stages"])]
    if "does_not_run" in row:
        return [*names, row["does_not_run"], "-", "-", "-", "-"]
    measured, predicted = row["measured_bytes"], row["predicted_bytes"]
    stages = [stage["measured_bytes"] for stage in row["stages"]]
    ratio = row["over_one_stage"]
    return [
        *names,
        _mib(measured),
        _mib(predicted),
        f"{measured / predicted:.2f}",
        "-" if ratio is None else f"{ratio:.2f}",
        "-" if None in stages else ", ".join(map(_mib, stages)),
    ]


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f}"
