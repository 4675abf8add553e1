"""A table of every run, and of how far it came."""

from __future__ import annotations

from collections.abc import Sequence

from delaygrad.report.page import Cell, Column, Row, Table
from delaygrad.report.quantities import MISSING, number_text
from delaygrad.report.run_group import RunGroup
from delaygrad.report.run_record import RunRecord


def runs_table(groups: Sequence[RunGroup]) -> Table:
    """Tabulate every run."""
    columns = (
        Column("run"),
        Column("test accuracy (%)", "final, or the latest", number=True),
        Column("best (%)", "chosen on the test set", number=True),
        Column("validation accuracy (%)", "the latest", number=True),
        Column("test loss", "nats", number=True),
        Column("samples/s", number=True),
        Column("parameters", "sha256"),
    )
    rows: list[Row] = []
    for group in groups:
        rows.append((Cell(group.label, series=group.series),))
        rows += [_run_row(run) for run in group.runs]
    kept = [
        index
        for index, column in enumerate(columns)
        if column.heading != "validation accuracy (%)"
        or any(run.evaluations("validation") for group in groups for run in group.runs)
    ]
    return Table(
        caption="Every run",
        columns=tuple(columns[index] for index in kept),
        rows=tuple(row if len(row) == 1 else tuple(row[i] for i in kept) for row in rows),
    )


def _run_row(run: RunRecord) -> Row:
    best = run.best_test
    test, validation = (run.evaluations(split)[-1:] for split in ("test", "validation"))
    latest = Cell(MISSING)
    if run.final_test is not None:
        latest = Cell(number_text(run.final_test, 2, 100))
    elif test:
        latest = Cell(f"{100 * test[0]['accuracy']:.2f}", f"so far, at epoch {test[0]['epoch']:g}")
    return (
        Cell(run.name, f"seed {run.seed}; {run.state_text}"),
        latest,
        Cell(MISSING)
        if best is None
        else Cell(f"{100 * best['accuracy']:.2f}", f"epoch {best['epoch']:g}"),
        f"{100 * validation[0]['accuracy']:.2f}" if validation else MISSING,
        number_text(run.result("test_loss"), 4),
        number_text(run.result("samples_per_s"), 0),
        str((run.summary or {}).get("parameters_sha256", MISSING))[:12],
    )
