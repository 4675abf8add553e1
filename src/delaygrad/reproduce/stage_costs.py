"""What the stages of a comparison cost: measured once, and kept with its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from delaygrad.methods import BP, Method
from delaygrad.partition import LayerCost
from delaygrad.planning import Link
from delaygrad.planning.dial import PartCost, PartCosts, scaled
from delaygrad.planning.forecast import forecast
from delaygrad.planning.link import chosen_link
from delaygrad.planning.simulate import Boundary
from delaygrad.planning.synchronous import SYNCHRONOUS
from delaygrad.reproduce.measured import Measurement
from delaygrad.training import TrainConfig
from delaygrad.training.assembly import plan_run
from delaygrad.training.component import Component

_NOT_DECIDING = {
    *TrainConfig.setting_names("records"), *TrainConfig.setting_names("method"),
    *TrainConfig.setting_names("lr_schedule"), "lr", "stages", "cuts", "runtime", "timeout_s",
    "epochs", "iterations", "seed", "data_dir",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LinkOptions(Component):
    """The link between two stages.

    Args:
        bandwidth: bandwidth of the link, such as 1Gbit or 2.5GB/s; by default the loopback of this
            machine is measured.
        latency_ms: latency of the link, one way, in milliseconds.
    """

    bandwidth: str | None = None
    latency_ms: float | None = None

    def link(self) -> Link | Literal["loopback"]:
        """Return the link that was given, or say which one to measure."""
        return chosen_link(self.bandwidth, self.latency_ms)


@dataclass(frozen=True, kw_only=True)
class StageCosts:
    """What the stages cost, by K (1 is among them), and the link between two.

    Attributes:
        stages: what each costs, with the batch at once.
        parts: what splitting the batch costs them.
        num_layers: of the network.
        link: None costs nothing.
    """

    stages: Mapping[int, Sequence[LayerCost]]
    parts: Mapping[int, PartCosts]
    num_layers: int
    link: Link | None

    def cuts(self, num_stages: int) -> tuple[str, ...]:
        """Return the first layers of all stages but the first."""
        return tuple(cost.name for cost in self.stages[num_stages][1:])

    def iteration_s(self, method: Method, num_stages: int) -> float:
        """Predict the seconds of an iteration."""
        (whole,), parts = self.stages[1], method.schedule.micro_batches
        stages = scaled(self.stages[num_stages], self.parts[num_stages], parts)
        return forecast(stages, whole, method, self.link).iteration_s

    def synchronous_s(self, num_stages: int, batch_size: int) -> dict[str, dict[int, float]]:
        """Predict the seconds of an iteration of synchronous pipelines, by schedule and M."""
        known, stages = self.parts[num_stages], self.stages[num_stages]
        boundaries = [
            Boundary(activation_bytes=stage.output_bytes, gradient_bytes=stage.gradient_bytes)
            for stage in stages[:-1]
        ]
        largest = max(known, default=1)  # above, some networks take no parts
        most = min(batch_size, largest if largest < 2 * (num_stages - 1) else 4 * num_stages)
        counts = {2**n for n in range(most.bit_length())} | {n * num_stages for n in (1, 2, 4)}
        return {
            schedule.name: {
                m: schedule.iteration_s(
                    scaled(stages, known, m), m, boundaries=boundaries, link=self.link
                )
                for m in sorted(counts)
                if m <= most and schedule.takes(num_stages, m)
            }
            for schedule in SYNCHRONOUS
            if schedule.pieces * num_stages <= self.num_layers
        }


def stage_costs(
    config: TrainConfig, link: Link | Literal["loopback"], counts: Sequence[int], folder: Path
) -> StageCosts:
    """Measure the stages for each K, or read what an earlier call has kept in the folder.

    A kept measurement with other settings is a ConfigError. ``link`` "loopback" is measured too.
    """
    known: dict[str, Any] = {"stages": {}, "parts": {}}

    def measure() -> dict[str, Any]:
        missing = [k for k in sorted({1, *counts}) if str(k) not in known["stages"]]
        found = _measured(config, link, missing)
        return {**found, **known, **{by_k: {**known[by_k], **found[by_k]} for by_k in _BY_K}}

    settings = {n: v for n, v in config.to_json().items() if n not in _NOT_DECIDING}
    given = None if isinstance(link, str) else vars(link)
    kept = Measurement(
        name="stages", folder=folder, settings={**settings, "link": given}, row={}, measure=measure
    )
    found = kept.kept()
    if found is not None and "parts" in found:  # earlier versions took 1/M for a part
        known |= {name: found[name] for name in ("link", "num_layers", *_BY_K)}
    if not {"1", *map(str, counts)} <= known["stages"].keys():
        kept.make()
        known |= kept.kept() or {}
    return StageCosts(
        stages={int(k): [LayerCost(**cost) for cost in own] for k, own in known["stages"].items()},
        parts={
            int(k): {int(m): [PartCost(**cost) for cost in own] for m, own in by_m.items()}
            for k, by_m in known["parts"].items()
        },
        num_layers=known["num_layers"],
        link=Link(**known["link"]) if known["link"] else None,
    )


_BY_K = ("stages", "parts")


def _measured(
    config: TrainConfig, link: Link | Literal["loopback"], counts: Sequence[int]
) -> dict[str, Any]:
    found = plan_run(config, config.data.load(), num_stages=counts, method=BP(), link=link)
    numbers = [str(len(costs)) for costs in found.stages]
    return {
        "link": None if found.link is None else vars(found.link),
        "num_layers": len(found.layers),
        "stages": dict(
            zip(numbers, ([_plain(c) for c in own] for own in found.stages), strict=True)
        ),
        "parts": {
            k: {str(m): [vars(cost) for cost in own] for m, own in by_m.items()}
            for k, by_m in zip(numbers, found.parts, strict=True)
        },
    }


def _plain(cost: LayerCost) -> dict[str, Any]:
    return {name: v for name, v in vars(cost).items() if name not in ("saved", "outputs")}
