"""Is the average squared gradient of DDG below what the theory promises, and how far below?

Trains ``LeakyChain``, whose L and M are known, through the local runtime, and
compares with every bound of ``delaygrad.theory``. Each network is trained as many replicas at once:
independent problems, weights and samples, each a run of its own; once with batches of one sample,
and beside it with full batches.

    python experiments/huo2018-guarantee/guarantee.py --output experiments/huo2018-guarantee
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from leaky_chain import LeakyChain, weights_of
from torch import Tensor, nn

import delaygrad as dg
from delaygrad import theory
from delaygrad.training.run_folder import environment

PROOFS: tuple[theory.Proof, ...] = ("published", "blockwise", "virtual")
BATCHES = ("sampled", "full")
RATE_SCALE = 2.5
"""Epsilon of the corollary: the step is this times sqrt(2 F / (T L M))."""
ADAM_SCALE = 0.5
"""Adam's learning rate is this / sqrt(T)."""
CHUNK = 64
"""Iterations whose gradient norms are computed at once."""

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is run."""

    stages: tuple[int, ...] = (1, 2, 4, 8, 16)
    replicas: int = 16
    iterations: int = 1024
    rate_iterations: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    seed: int = 0


SMOKE = Scale(stages=(1, 3), replicas=4, iterations=32, rate_iterations=(16, 32))


@dataclass(frozen=True)
class Setting:
    """One network of K stages, with all that the theory wants to know of it."""

    chain: LeakyChain
    start: Tensor
    seed: int

    @classmethod
    def make(cls, num_stages: int, scale: Scale) -> Setting:
        chain = LeakyChain.random(num_stages=num_stages, replicas=scale.replicas, seed=scale.seed)
        return cls(chain, weights_of(chain.stages(scale.seed)), scale.seed)

    @property
    def delays(self) -> list[int]:
        num_stages = self.chain.num_stages
        return [dg.DDG().schedule.delay(k, num_stages) for k in range(num_stages)]

    @property
    def worst(self) -> theory.Assumptions:
        """With the largest gap of all runs, for steps that all share."""
        return self.chain.assumptions(self.start)

    @property
    def each(self) -> list[theory.Assumptions]:
        """With every run's own gap: the loss is at least 0, so the gap is at most the loss."""
        return [
            theory.Assumptions(**{**asdict(self.worst), "gap": gap.item()})
            for gap in self.chain.values(self.start)
        ]

    def squares(self, steps: Sequence[float], make: MakeOptimizer) -> dict[str, Tensor]:
        """For each kind of batches (T, R): |grad f(w@t)|^2 of every iteration and run.

        Both kinds train side by side, as replicas of the same problems.
        """
        both = LeakyChain(
            num_stages=self.chain.num_stages,
            inputs=self.chain.inputs.repeat(1, len(BATCHES), 1),
            targets=self.chain.targets.repeat(1, len(BATCHES)),
        )
        stages = both.stages()
        parameters = [next(stage.parameters()) for stage in stages]
        for parameter, start in zip(parameters, self.start, strict=True):
            parameter.data.copy_(start.repeat(len(BATCHES), 1))
        pipe = dg.LocalPipeline(stages, both.loss, make, method=dg.DDG())
        generator = torch.Generator().manual_seed(self.seed)
        visited, squares = [], []
        for t, step in enumerate(steps):
            visited.append(torch.stack([parameter.detach().clone() for parameter in parameters]))
            if len(visited) == CHUNK or t == len(steps) - 1:
                squares.append(both.squared_gradient_norms(torch.stack(visited, dim=1)))
                visited.clear()
            for optimizer in pipe.optimizers:
                assert optimizer is not None
                optimizer.param_groups[0]["lr"] = step
            index = self._index(generator)
            pipe.step(
                both.inputs.take_along_dim(index[..., None], 0),
                both.targets.take_along_dim(index, 0),
            )
        sampled, full = torch.cat(squares).chunk(len(BATCHES), dim=1)
        return {"sampled": sampled, "full": full}

    def _index(self, generator: torch.Generator) -> Tensor:
        """(N, 2 R): the one sample of a batch, as often as there are samples; and each once."""
        samples, replicas = self.chain.targets.shape
        drawn = torch.randint(samples, (1, replicas), generator=generator).expand(samples, -1)
        return torch.cat([drawn, torch.arange(samples)[:, None].expand(-1, replicas)], dim=1)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.0)


def compared(measured: Tensor, bounds: dict[str, list[float]]) -> dict[str, Any]:
    """Measured averages of all runs beside each run's own bounds."""
    values = np.array(measured.tolist())
    ratios = {name: values / np.array(bound) for name, bound in bounds.items()}
    return {
        "measured": {"mean": values.mean(), "max": values.max()},
        "bound": {name: float(np.mean(bound)) for name, bound in bounds.items()},
        "ratio": {
            name: {"mean": ratio.mean(), "max": ratio.max()} for name, ratio in ratios.items()
        },
        "runs": len(values),
        "runs_below": {name: int((ratio <= 1).sum()) for name, ratio in ratios.items()},
    }


def fixed_step(setting: Setting, step: float, iterations: int) -> list[dict[str, Any]]:
    """Train with one step and compare with every bound that covers it."""
    squares = setting.squares([step] * iterations, sgd)
    return [
        {
            "stages": setting.chain.num_stages,
            "batches": batches,
            "step": step,
            "iterations": iterations,
            **compared(squares[batches].mean(0), fixed_bounds(setting, step, iterations, batches)),
        }
        for batches in BATCHES
    ]


def fixed_bounds(
    setting: Setting, step: float, iterations: int, batches: str
) -> dict[str, list[float]]:
    """Return the bounds of all runs, by every proof that covers the step."""
    bounds: dict[str, list[float]] = {
        proof: [
            theory.fixed_step_bound(
                known, setting.delays, step=step, iterations=iterations, proof=proof
            )
            for known in setting.each
        ]
        for proof in PROOFS
        if proof == "virtual" or step * setting.chain.smoothness <= 1
    }
    delay = max(setting.delays)
    if step < theory.certified_step(setting.chain.smoothness, delay):
        bounds["variance"] = [
            theory.variance_bound(
                smoothness=known.smoothness,
                gap=known.gap,
                delay=delay,
                step=step,
                iterations=iterations,
                variance=0.0 if batches == "full" else known.second_moment,
            )
            for known in setting.each
        ]
    return bounds


def fixed_steps(setting: Setting, scale: Scale) -> list[dict[str, Any]]:
    """The step that each proof likes best, and half of the certified one."""
    steps = {
        proof: theory.best_fixed_step(
            setting.worst, setting.delays, iterations=scale.iterations, proof=proof
        )
        for proof in ("published", "virtual")
    }
    certified = theory.certified_step(setting.chain.smoothness, max(setting.delays))
    steps["certified / 2"] = certified / 2
    return [
        {"rule": rule, **result}
        for rule, step in steps.items()
        for result in fixed_step(setting, step, scale.iterations)
    ]


def diminishing_steps(setting: Setting, scale: Scale) -> list[dict[str, Any]]:
    """The schedule of ``--lr-schedule theorem``, from half of 1/L."""
    lr = 0.5 / setting.chain.smoothness
    decay = theory.PolynomialDecay(lr=lr, time_scale=scale.iterations / 16, power=0.6)
    steps = decay.steps(scale.iterations)
    weights = torch.tensor(steps, dtype=torch.float64)[:, None]
    squares = setting.squares(steps, sgd)
    bounds = {
        proof: [
            theory.diminishing_step_bound(known, setting.delays, steps, proof=proof)
            for known in setting.each
        ]
        for proof in PROOFS
    }
    return [
        {
            "stages": setting.chain.num_stages,
            "batches": batches,
            "schedule": asdict(decay),
            "iterations": scale.iterations,
            **compared((squares[batches] * weights).sum(0) / weights.sum(), bounds),
        }
        for batches in BATCHES
    ]


def rates(setting: Setting, scale: Scale) -> list[dict[str, Any]]:
    """Average against T with a step proportional to 1 / sqrt(T); Adam is outside the theory."""
    points: dict[tuple[str, str], list[dict[str, Any]]] = {
        (optimizer, batches): [] for optimizer in ("sgd", "adam") for batches in BATCHES
    }
    for iterations in scale.rate_iterations:
        worst = setting.worst
        noise = iterations * worst.smoothness * (worst.second_moment / 2)
        step = RATE_SCALE * math.sqrt(worst.gap / noise)
        for result in fixed_step(setting, step, iterations):
            points["sgd", result["batches"]].append(result)
        lr = ADAM_SCALE / math.sqrt(iterations)
        for batches, squares in setting.squares([lr] * iterations, adam).items():
            averages = squares.mean(0)
            measured = {"mean": averages.mean().item(), "max": averages.max().item()}
            points["adam", batches].append(
                {"iterations": iterations, "step": lr, "measured": measured}
            )
    return [
        {
            "stages": setting.chain.num_stages,
            "optimizer": optimizer,
            "covered": optimizer == "sgd",
            "batches": batches,
            "slope": slope(series),
            "slope_of_last_doubling": slope(series[-2:]),
            "points": series,
        }
        for (optimizer, batches), series in points.items()
    ]


def slope(points: Sequence[dict[str, Any]]) -> float:
    """Of log(average) against log(T), by least squares."""
    iterations = [point["iterations"] for point in points]
    averages = [point["measured"]["mean"] for point in points]
    return float(np.polyfit(np.log(iterations), np.log(averages), 1)[0])


def run(scale: Scale) -> dict[str, Any]:
    report: dict[str, Any] = {"fixed": [], "diminishing": [], "rates": []}
    start = time.perf_counter()
    for num_stages in scale.stages:
        setting = Setting.make(num_stages, scale)
        for name, part in (
            ("fixed", fixed_steps),
            ("diminishing", diminishing_steps),
            ("rates", rates),
        ):
            report[name] += part(setting, scale)
            print(f"K = {num_stages}: {name} after {time.perf_counter() - start:.0f} s", flush=True)
    return report


def all_below(report: dict[str, Any]) -> tuple[int, int]:
    """Count comparisons of one run with one bound, and those where the run is below it."""
    points = [
        point for series in report["rates"] if series["covered"] for point in series["points"]
    ]
    results = [*report["fixed"], *report["diminishing"], *points]
    total = sum(result["runs"] * len(result["runs_below"]) for result in results)
    return total, sum(sum(result["runs_below"].values()) for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder for results and figure")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    arguments = parser.parse_args()
    scale = SMOKE if arguments.smoke else Scale()
    torch.set_num_threads(1)
    report = run(scale)
    comparisons, below = all_below(report)
    arguments.output.mkdir(parents=True, exist_ok=True)
    summary = {"comparisons": comparisons, "below": below}
    text = json.dumps(
        {"scale": asdict(scale), "environment": environment(), "summary": summary, **report},
        indent=1,
    )
    (arguments.output / "results.json").write_text(text + "\n", encoding="utf-8")
    from figure import draw

    draw(report, arguments.output / "results.png")
    print(f"{below} of {comparisons} comparisons of a run with a bound are below it")


if __name__ == "__main__":
    main()
