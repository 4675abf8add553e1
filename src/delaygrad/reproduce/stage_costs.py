"""What the stages of a comparison cost: measured once, and kept with its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from delaygrad.methods import BP, Method
from delaygrad.partition import LayerCost
from delaygrad.planning import Link, plan
from delaygrad.planning.forecast import forecast
from delaygrad.planning.link import chosen_link
from delaygrad.planning.simulate import Boundary, synchronous_s
from delaygrad.reproduce.measured import Measurement
from delaygrad.training import TrainConfig
from delaygrad.training.assembly import build_model, first_batch
from delaygrad.training.component import Component
from delaygrad.training.evaluation import cross_entropy

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
    """What the stages cost, by K (1 is among them), and the link between two."""

    stages: Mapping[int, Sequence[LayerCost]]
    link: Link | None

    def cuts(self, num_stages: int) -> tuple[str, ...]:
        """Return the first layers of all stages but the first."""
        return tuple(cost.name for cost in self.stages[num_stages][1:])

    def iteration_s(self, method: Method, num_stages: int) -> float:
        """Predict the seconds of an iteration."""
        (whole,) = self.stages[1]
        return forecast(self.stages[num_stages], whole, method, self.link).iteration_s

    def best_synchronous(self, num_stages: int, batch_size: int) -> tuple[str, float]:
        """Return the fastest synchronous pipeline at its best M, and its seconds per iteration."""
        stages = self.stages[num_stages]
        boundaries = [
            Boundary(activation_bytes=stage.output_bytes, gradient_bytes=stage.gradient_bytes)
            for stage in stages[:-1]
        ]
        counts = [m for m in (2**n for n in range(11)) if m <= min(4 * num_stages, batch_size)]
        time = partial(synchronous_s, stages, boundaries=boundaries, link=self.link)
        seconds = {m: time(m) for m in counts}
        best = min(seconds, key=lambda m: seconds[m])
        return f"synchronous 1F1B K={num_stages} M={best}", seconds[best]


def stage_costs(
    config: TrainConfig, link: Link | Literal["loopback"], counts: Sequence[int], folder: Path
) -> StageCosts:
    """Measure the stages for each K, or read what an earlier call has kept in the folder.

    A kept measurement with other settings is a ConfigError. ``link`` "loopback" is measured too.
    """
    known: dict[str, Any] = {"stages": {}}

    def measure() -> dict[str, Any]:
        missing = [k for k in sorted({1, *counts}) if str(k) not in known["stages"]]
        found = _measured(config, link, missing)
        return {**found, **known, "stages": {**known["stages"], **found["stages"]}}

    settings = {n: v for n, v in config.to_json().items() if n not in _NOT_DECIDING}
    given = None if isinstance(link, str) else vars(link)
    kept = Measurement(
        name="stages", folder=folder, settings={**settings, "link": given}, row={}, measure=measure
    )
    if (found := kept.kept()) is not None:
        known |= {name: found[name] for name in ("link", "stages")}
    if not {"1", *map(str, counts)} <= known["stages"].keys():
        kept.make()
        known |= kept.kept() or {}
    stages = {int(k): [LayerCost(**cost) for cost in costs] for k, costs in known["stages"].items()}
    return StageCosts(stages=stages, link=Link(**known["link"]) if known["link"] else None)


def _measured(
    config: TrainConfig, link: Link | Literal["loopback"], counts: Sequence[int]
) -> dict[str, Any]:
    source = config.data.load()
    inputs, targets = first_batch(config, source, torch.device("cpu"))
    found = plan(
        build_model(config, source),
        inputs,
        num_stages=counts,
        method=BP(),
        loss=lambda outputs: cross_entropy(outputs, targets),
        make_optimizer=config.optimizer.make,
        link=link,
        threads=config.run.threads,
    )
    return {
        "link": None if found.link is None else vars(found.link),
        "stages": {str(len(costs)): [_plain(cost) for cost in costs] for costs in found.stages},
    }


def _plain(cost: LayerCost) -> dict[str, Any]:
    return {name: v for name, v in vars(cost).items() if name not in ("saved", "outputs")}
