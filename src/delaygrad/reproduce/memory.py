"""A target that measures memory: the peak of each stage for several K, beside the formula."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from delaygrad import models
from delaygrad.bench.memory_peaks import (
    MemoryCase,
    balanced_cuts,
    measure_peaks,
    measure_total_on_gpu,
    predict_peaks,
)
from delaygrad.launch import torch_threads
from delaygrad.records.spread import MISSING
from delaygrad.reproduce.measured import MeasuredTarget, Measurement
from delaygrad.reproduce.target import Findings, Row, Scale, text_table
from delaygrad.results.bars import Bar, bar_panel
from delaygrad.results.figure import colour
from delaygrad.results.group import method_title
from delaygrad.training import TrainConfig
from delaygrad.training.evaluation import cross_entropy

_SAMPLE_SHAPE, _NUM_CLASSES = (3, 32, 32), 10
_HEADINGS = (
    "network", "batch", "method", "K", "measured, MiB", "formula, MiB", "measured / formula",
    "of one stage", "by stage, MiB",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MemoryLine:
    """The same network and method with one or several K.

    Attributes:
        model: by its name; its inputs are images of 3x32x32.
        stages: K.
        batch_size: images.
        method: with delayed backward passes.
        options: of the method, by name.
        device: cpu: a process for each stage; cuda: all stages in one, on one GPU, and their total.
    """

    model: str
    stages: tuple[int, ...]
    batch_size: int = 128
    method: str = "ddg"
    options: dict[str, Any] = field(default_factory=dict)
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def variant(self) -> str:
        """The options in short."""
        return "-".join(
            name.replace("_", "-") + ("" if value is True else str(value))
            for name, value in self.options.items()
        )

    def case(self, num_stages: int) -> MemoryCase:
        """Return what is measured for one K."""
        own = {"batch_size": self.batch_size, "method": self.method, "stages": num_stages}
        config = TrainConfig.from_json({**own, **self.options, "model": self.model})
        config.check()
        return MemoryCase(
            make=partial(_training, self.model, self.batch_size),
            loss_fn=cross_entropy,
            num_stages=num_stages,
            method=config.method.build(),
        )

    def name(self, num_stages: int) -> str:
        """What the results are kept under."""
        words = (self.model, f"b{self.batch_size}", self.method, self.variant, self.device)
        return f"{'-'.join(word for word in words if word)}-k{num_stages}"


@dataclass(frozen=True, kw_only=True)
class MemoryScale(Scale):
    """The lines of a scale, in order."""

    lines: tuple[MemoryLine, ...]

    def cases(self) -> list[tuple[MemoryLine, int]]:
        """List the lines, one for each K."""
        return [(line, num_stages) for line in self.lines for num_stages in line.stages]


@dataclass(frozen=True, kw_only=True)
class MemoryTarget(MeasuredTarget):
    """What a ``target.toml`` of kind memory says.

    Attributes:
        scales: by name.
        cuts: network -> number of stages -> first layer of each stage but the first; others are
            balanced by measured time.
    """

    scales: dict[str, MemoryScale]
    cuts: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)

    def cuts_of(self, line: MemoryLine, num_stages: int) -> tuple[str, ...] | None:
        """Return where the network is to be cut; None: where the time balances."""
        return () if num_stages == 1 else self.cuts.get(line.model, {}).get(str(num_stages))

    def plan(self, scale: str, folder: Path, data_dir: Path | None = None) -> list[Measurement]:
        """List the cases; see ``Target``."""
        found = []
        for line, num_stages in self.scales[scale].cases():
            cuts = self.cuts_of(line, num_stages)
            row = {
                name: getattr(line, name)
                for name in ("model", "batch_size", "method", "variant", "device")
            }
            plain_cuts = None if cuts is None else list(cuts)
            found.append(
                Measurement(
                    name=line.name(num_stages),
                    folder=folder,
                    settings={**dataclasses.asdict(line), "stages": num_stages, "cuts": plain_cuts},
                    row={**row, "num_stages": num_stages},
                    measure=partial(_measure, line, line.case(num_stages), cuts),
                )
            )
        return found

    def rows(self, measurement: Measurement, found: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the totals, and the same by stage (none on a GPU)."""
        keys = ("cuts", "measured_bytes", "predicted_bytes", "stages")
        return [{**measurement.row, **{key: found[key] for key in keys}}]

    def findings(self, planned: Sequence[Measurement], speed_rows: Sequence[Row] = ()) -> Findings:
        """Put each stage's memory and the total by the formula together.

        ``over_one_stage`` of a row is the total over that of K = 1 of the same line.
        """
        rows = self.measured_rows(planned)
        ones = {_network(row): row["measured_bytes"] for row in rows if row["num_stages"] == 1}
        for row in rows:
            one = ones.get(_network(row))
            row["over_one_stage"] = round(row["measured_bytes"] / one, 3) if one else None
        bars = list(map(_bar, rows))
        names = dict.fromkeys(name for bar in bars for name in bar.parts)
        looks = {name: {"facecolor": colour(k)} for k, name in enumerate(names, start=1)}
        return Findings(
            results={"rows": rows},
            tables=(text_table("", _HEADINGS, list(map(_cells, rows))),),
            notes=(_EXPLAINED,),
            figures={"memory": {"": [bar_panel(bars, "memory (MiB)", looks)]}} if bars else {},
        )


_EXPLAINED = (
    "Measured: the most that PyTorch's allocator had given out at once, summed over the "
    "stages (on a GPU: of all stages together in one process). Formula: "
    "`delaygrad.planning.stage_memory`, from a measurement of single layers. Of one stage: "
    "measured, as a multiple of K = 1; with uniform stages the activations are (K + 1) / 2 "
    "of it."
)


def _bar(row: Row) -> Bar:
    stages = [stage["measured_bytes"] for stage in row["stages"]]
    parts = {"total": row["measured_bytes"]}
    if None not in stages:
        parts = {str(k) if k else "stage 0": peak for k, peak in enumerate(stages)}
    device = "" if row["device"] == "cpu" else f", {row['device']}"
    return Bar(
        label=f"{row['model']}, {_method(row)}, K={row['num_stages']}{device}",
        parts={name: num_bytes / 2**20 for name, num_bytes in parts.items()},
        markers={"formula": row["predicted_bytes"] / 2**20},
        value=_mib(row["measured_bytes"]),
    )


def _network(row: Row) -> tuple[Any, ...]:
    return row["model"], row["batch_size"], row["device"]


def _method(row: Row) -> str:
    return method_title(row["method"], row["variant"])


def _cells(row: Row) -> list[str]:
    names = [row["model"], str(row["batch_size"]), _method(row), str(row["num_stages"])]
    measured, predicted = row["measured_bytes"], row["predicted_bytes"]
    stages = [stage["measured_bytes"] for stage in row["stages"]]
    ratio = row["over_one_stage"]
    return [
        *names,
        _mib(measured),
        _mib(predicted),
        f"{measured / predicted:.2f}",
        MISSING if ratio is None else f"{ratio:.2f}",
        MISSING if None in stages else ", ".join(map(_mib, stages)),
    ]


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f}"


def _measure(line: MemoryLine, case: MemoryCase, known: tuple[str, ...] | None) -> dict[str, Any]:
    with torch_threads(1):
        cuts = balanced_cuts(case) if known is None else list(known)
        predicted = predict_peaks(case, cuts)
        measured = measure_peaks(case, cuts) if line.device == "cpu" else []
        total = sum(measured) if measured else measure_total_on_gpu(case, cuts)
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


def _training(model: str, batch_size: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    network = models.to_channels_last(models.build(model, _SAMPLE_SHAPE, _NUM_CLASSES))
    images = torch.randn(batch_size, *_SAMPLE_SHAPE).to(memory_format=torch.channels_last)
    return network, images, torch.randint(_NUM_CLASSES, (batch_size,))
