"""Make a plan: measure the network and the machine, cut, predict."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delaygrad.data import DataSource
from delaygrad.partition import Forecast, LayerCost, Link, Seconds, forecast, split
from delaygrad.partition.costs import join, stages_of
from delaygrad.partition.forecast import with_seconds
from delaygrad.partition.layers import list_layers
from delaygrad.partition.measure import probing
from delaygrad.partition.memory import fits_within
from delaygrad.partition.pace import iteration_s
from delaygrad.partition.probe import Probe
from delaygrad.partition.refine import MeasuredCuts, grouped, measured_cuts
from delaygrad.partition.sharing import find_ties
from delaygrad.partition.split import separable_groups
from delaygrad.runtime.machine import Machine, measure_machine
from delaygrad.training.assembly import (
    build_model,
    check_batches,
    first_batch,
    load_data,
    make_optimizer,
)
from delaygrad.training.config import TrainConfig
from delaygrad.training.evaluation import cross_entropy
from delaygrad.training.plan_config import PlanConfig
from delaygrad.training.reporter import announce
from delaygrad.training.run_folder import environment

_FLAGS = (
    "data", "data_dir", "model", "width", "depth", "heads", "context_length", "dropout",
    "channels_last", "batch_size", "optimizer", "threads", "seed", "method", "slack",
    "micro_batches", "recompute", "stash_dtype", "boundary_dtype",
)  # fmt: skip


def make_plan(config: PlanConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Measure the network on a batch of its data, and predict how it will train as K stages.

    Args:
        config: what to plan.
        quiet: show no progress.

    Returns:
        The plan in plain values: what was measured, and for each K the cuts, each stage, the
        prediction, advice, and the command that trains like this. Times in seconds (``_s``),
        sizes in bytes (``_bytes``).

    Raises:
        DelaygradError: a setting, the network or the data do not fit, or no cuts keep to the
            memory cap.
    """
    config.check()
    train = config.train_config(max(config.stages))
    source = load_data(train)
    check_batches(train, source)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return _Planner(config, train, source, quiet).plan()
    finally:
        torch.set_num_threads(threads)


class _Planner:
    def __init__(
        self, config: PlanConfig, train: TrainConfig, source: DataSource, quiet: bool
    ) -> None:
        self._config, self._train, self._quiet = config, train, quiet
        self._model = build_model(train, source)
        self._inputs, self._targets = first_batch(train, source, torch.device("cpu"))
        self._names = [layer.name for layer in list_layers(self._model)]
        self._how = config.pipelined()

    def plan(self) -> dict[str, Any]:
        config = self._config
        # All that can be refused, before anything is measured for long.
        ties = find_ties(list_layers(self._model))
        groups = {k: separable_groups(len(self._names), k, ties) for k in config.stages}
        with probing(
            self._model, self._inputs, make_optimizer=make_optimizer(self._train), loss=self._loss
        ) as probe:
            announce(f"timing {len(self._names)} layers", quiet=self._quiet)
            costs = probe.layers()
            whole_s = probe.stages([])
            found = {}
            for num_stages in dict.fromkeys(config.stages):
                announce(f"timing {num_stages} stages", quiet=self._quiet)
                found[num_stages] = self._cut(probe, costs, num_stages, groups[num_stages])
            work = self._work(probe, costs, found)
        machine = self._measure_machine(work)
        link = config.link() or machine.link
        (whole,) = with_seconds([join(costs)], whole_s)
        return {
            "config": _plain(config),
            "environment": environment(),
            "link": {**vars(link), "measured": config.bandwidth is None} if link else None,
            "side_by_side": {"slowdown": machine.slowdown, "processes": machine.processes},
            "one_device": _one_device(whole),
            "layers": [cost.to_json() for cost in costs],
            "plans": [
                self._predict(num_stages, costs, cut, whole, link, machine)
                for num_stages, cut in found.items()
            ],
        }

    def _loss(self, outputs: Any) -> Tensor:
        return cross_entropy(outputs, self._targets)

    def _cut(
        self, probe: Probe, costs: Sequence[LayerCost], num_stages: int, groups: list[int]
    ) -> MeasuredCuts:
        waiting, fits = self._how.waiting(num_stages), None
        if self._config.memory_cap is not None:
            caps = [self._config.cap_bytes()] * num_stages
            fits = fits_within(grouped(costs, groups), waiting, caps)
        speeds = self._config.speeds or None
        again = [wait.recompute and wait.lag > 0 for wait in waiting]
        return measured_cuts(
            probe, costs, num_stages, groups=groups, speeds=speeds, again=again, fits=fits
        )

    def _work(
        self, probe: Probe, costs: Sequence[LayerCost], found: dict[int, MeasuredCuts]
    ) -> list[tuple[nn.Module, Any]]:
        """Return as many stages, with their inputs, as this machine can run side by side."""
        config = self._config
        num_stages = min(max(config.stages), _processes_at_once(config))
        if num_stages < 2 or not config.side_by_side:
            return []
        cut = found.get(num_stages)
        if cut is None:
            groups = separable_groups(len(costs), num_stages, find_ties(list_layers(self._model)))
            cut = measured_cuts(probe, costs, num_stages, groups=groups)
        inputs = probe.stage_inputs(cut.cuts)
        return list(zip(split(self._model, num_stages, cuts=cut.cuts), inputs, strict=True))

    def _measure_machine(self, work: list[tuple[nn.Module, Any]]) -> Machine:
        wants_link = self._config.link() is None
        if max(self._config.stages) < 2 or not (work or wants_link):
            return Machine(link=None, slowdown=None, processes=1)
        announce(f"timing {max(len(work), 2)} processes side by side", quiet=self._quiet)
        return measure_machine(work, threads=self._config.threads, link=wants_link)

    def _predict(
        self,
        num_stages: int,
        costs: Sequence[LayerCost],
        cut: MeasuredCuts,
        whole: LayerCost,
        link: Link | None,
        machine: Machine,
    ) -> dict[str, Any]:
        joined = with_seconds(stages_of(costs, cut.cuts), cut.seconds)
        speeds = list(self._config.speeds) or [1.0] * num_stages
        prediction = forecast(joined, whole, self._how, link, speeds=speeds)
        names = tuple(self._names[index] for index in cut.cuts)
        return {
            "stages": num_stages,
            "method": repr(self._config.chosen_method()),
            "cuts": list(names),
            "iteration_s": prediction.iteration_s,
            "speedup": whole.total_s / prediction.iteration_s,
            "efficiency": whole.total_s / prediction.iteration_s / sum(speeds),
            "slowest_stage_s": prediction.slowest_s,
            "exposed_s": prediction.exposed_s,
            "sent_bytes": prediction.sent_bytes,
            "boundaries": [vars(boundary) for boundary in prediction.boundaries],
            "iteration_by_slack_s": {str(s): time for s, time in prediction.slack_s.items()},
            "data_parallel": vars(prediction.data_parallel),
            "here": self._here(prediction, num_stages, link, machine),
            "stage_plans": self._stage_plans(joined, prediction, speeds),
            "advice": prediction.advice,
            "command": train_command(self._config, num_stages, names),
        }

    def _here(
        self, prediction: Forecast, num_stages: int, link: Link | None, machine: Machine
    ) -> dict[str, Any]:
        """Predict the same with all processes on this machine."""
        cores = os.cpu_count() or 1
        together = num_stages > 1 and any(self._how.lags(num_stages))
        slowdown = machine.slowdown if together and machine.slowdown else 1.0
        slowed = [
            Seconds(
                forward_s=stage.forward_s * slowdown,
                backward_s=stage.backward_s * slowdown,
                update_s=stage.update_s * slowdown,
            )
            for stage in prediction.stages
        ]
        time = iteration_s(
            slowed,
            self._how.lags(num_stages),
            boundaries=prediction.boundaries,
            link=link if self._config.bandwidth is None else None,
            micro_batches=self._config.micro_batches,
        )
        crowded = num_stages * self._config.threads > cores
        if crowded:  # the cores cannot do more work than there is time
            at_once = _processes_at_once(self._config)
            time = max(time, sum(stage.total_s for stage in slowed) / at_once)
        return {"iteration_s": time, "cores": cores, "crowded": crowded}

    def _stage_plans(
        self, joined: Sequence[LayerCost], prediction: Forecast, speeds: Sequence[float]
    ) -> list[dict[str, Any]]:
        total_s = sum(stage.total_s for stage in prediction.stages)
        lags = self._how.waiting(len(joined))
        return [
            {
                "stage": k,
                "first_layer": cost.name,
                "speed": speeds[k],
                "lag": lags[k].lag,
                "delay": lags[k].delay,
                "forward_s": seconds.forward_s,
                "backward_s": seconds.backward_s,
                "update_s": seconds.update_s,
                "share": seconds.total_s / total_s if total_s else 0.0,
                "memory": {**vars(memory), "total_bytes": memory.total_bytes},
            }
            for k, (cost, seconds, memory) in enumerate(
                zip(joined, prediction.stages, prediction.memory, strict=True)
            )
        ]


def train_command(config: PlanConfig, num_stages: int, cuts: Sequence[str]) -> str:
    """Return the command that trains as planned.

    Example:
        >>> train_command(PlanConfig(model="mlp"), 2, ["linear2"])
        'delaygrad train --model mlp --stages 2 --cuts linear2 --runtime distributed'
    """
    words = ["delaygrad", "train"]
    defaults = PlanConfig()
    for name in _FLAGS:
        value, flag = getattr(config, name), name.replace("_", "-")
        if value == getattr(defaults, name):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    words += ["--stages", str(num_stages), *(["--cuts", *cuts] if cuts else [])]
    return shlex.join([*words, "--runtime", "distributed"])


def _processes_at_once(config: PlanConfig) -> int:
    return max((os.cpu_count() or 1) // config.threads, 1)


def _one_device(whole: LayerCost) -> dict[str, Any]:
    return {"iteration_s": whole.total_s, **whole.to_json()}


def _plain(config: PlanConfig) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int | float | tuple | None) else str(value)
        for name, value in vars(config).items()
    }
