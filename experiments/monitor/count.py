"""Count what the monitor's warnings are worth: plain DDG, learning rates from healthy to divergent.

    python experiments/monitor/count.py                                  # digits: MLP, ResNet-8
    python experiments/monitor/count.py --text FOLDER_OR_FILE            # the GPT on characters too

Each run is a line of records.jsonl; runs that are there are not made again. At the end table.md is
written. The rules of the count, and the monitor's thresholds (delaygrad/monitor/advice.py), were
fixed before the first counted run:

    diverged   the loss is not finite, or the mean loss of the last fifth of the run is above 1.2
               times the loss of the first batch; it happened where the mean of 10 losses went above
               that and stayed there
    healthy    the mean loss of the last fifth of the run is within 5 % of backpropagation's with
               the same learning rate, seed and batches
    harmed     everything else
    warned     the monitor has warned; in a diverged run: before it diverged

A column "diverged, as BP" counts the runs whose learning rate is too high for backpropagation too.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.data import DataSource, load
from delaygrad.models import build
from delaygrad.monitor import Row

HERE = Path(__file__).parent
RECORDS, TABLE = HERE / "records.jsonl", HERE / "table.md"
EVERY = 5
DIVERGED, HEALTHY = 1.2, 1.05
STATES = ("diverged", "diverged, as BP", "healthy", "harmed")
LRS = {
    "mlp": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
    "resnet8": (0.0003, 0.001, 0.003, 0.01, 0.1, 1.0),
    "gpt": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1),
}


class Block(nn.Module):
    """A layer of a residual perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width) to (B, width)."""
        out: Tensor = x + self.linear(self.norm(x)).relu()
        return out


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A network, its data and its optimizer; ``make`` is called after torch's seed is set."""

    name: str
    source: DataSource
    make: Callable[[], nn.Sequential]
    optimizer: Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
    stages: tuple[int, ...]
    seeds: tuple[int, ...]
    iterations: int
    batch_size: int


def problems(text: Path | None) -> Iterator[Problem]:
    """Yield the problems; the GPT only with a text."""
    digits = load("digits")

    def mlp() -> nn.Sequential:
        blocks = (Block(32) for _ in range(15))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *blocks, nn.Linear(32, 10))

    def sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    def made(name: str, source: DataSource, **options: Any) -> nn.Sequential:
        model = build(name, source.sample_shape, source.num_classes, **options)
        assert isinstance(model, nn.Sequential)
        return model

    yield Problem(
        name="mlp", source=digits, make=mlp, optimizer=sgd, stages=(4, 8, 16), seeds=(0, 1),
        iterations=200, batch_size=50,
    )  # fmt: skip
    yield Problem(
        name="resnet8", source=digits, make=lambda: made("resnet8", digits), optimizer=sgd,
        stages=(4, 6), seeds=(0,), iterations=120, batch_size=50,
    )  # fmt: skip
    if text is not None:
        characters = load("text", data_dir=text, context_length=16)
        yield Problem(
            name="gpt",
            source=characters,
            make=lambda: made("gpt", characters, width=16, depth=14, heads=2),
            optimizer=lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr),
            stages=(4, 8, 16),
            seeds=(0,),
            iterations=150,
            batch_size=16,
        )


def train(problem: Problem, num_stages: int, lr: float, seed: int) -> dict[str, Any]:
    """Make one run; backpropagation where K = 1."""
    torch.manual_seed(seed)
    network = problem.make()
    pipe = dg.LocalPipeline(
        cut(network, num_stages),
        lambda outputs, targets: cross_entropy(outputs.flatten(0, -2), targets.flatten()),
        lambda parameters: problem.optimizer(parameters, lr),
        allow_nonfinite_loss=True,
    )
    warned, losses = list[dict[str, Any]](), list[float]()

    def report(row: Row, warning: str | None) -> None:
        if warning is not None:
            warned.append({"iteration": pipe.iteration, "text": warning.split(";")[0]})

    if num_stages > 1:
        dg.Monitor(pipe, EVERY, report=report)
    data, order = problem.source.train, torch.Generator().manual_seed(seed)
    while len(losses) < problem.iterations and math.isfinite(sum(losses)):
        batch = torch.randint(data.num_samples, (problem.batch_size,), generator=order).numpy()
        loss = pipe.step(data.inputs(batch), data.targets(batch))
        assert loss is not None
        losses.append(float(loss))
    last = losses[-problem.iterations // 5 :]
    final = sum(last) / len(last)
    return {
        "problem": problem.name,
        "stages": num_stages,
        "lr": lr,
        "seed": seed,
        "diverged_at": diverged_at(losses, final),
        "final_loss": final if math.isfinite(final) else None,
        "warnings": warned,
    }


def diverged_at(losses: list[float], final: float) -> int | None:
    """Return the iteration from which the mean of 10 losses stays high; None: not diverged."""
    limit = DIVERGED * losses[0]
    if final <= limit:
        return None
    means = [sum(losses[max(t - 9, 0) : t + 1]) / min(t + 1, 10) for t in range(len(losses))]
    return max((t + 1 for t, mean in enumerate(means) if mean <= limit), default=0)


def cut(network: nn.Sequential, num_stages: int) -> list[nn.Module]:
    """Cut so that every stage has about as many layers with parameters."""
    layers = list(network)
    trained = [i for i, layer in enumerate(layers) if any(True for _ in layer.parameters())]
    starts = [trained[round(k * len(trained) / num_stages)] for k in range(1, num_stages)]
    ends = [*starts, len(layers)]
    return [nn.Sequential(*layers[a:b]) for a, b in zip([0, *starts], ends, strict=True)]


def read() -> list[dict[str, Any]]:
    """Return the runs on record."""
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.exists() else []
    return [json.loads(line) for line in lines]


def identity(run: dict[str, Any]) -> tuple[Any, ...]:
    """Tell runs apart."""
    return run["problem"], run["stages"], run["lr"], run["seed"]


def state_of(run: dict[str, Any], base: dict[str, Any]) -> str:
    """Return one of ``STATES``; ``base`` is backpropagation's run."""
    if run["diverged_at"] is not None:
        return "diverged" if base["diverged_at"] is None else "diverged, as BP"
    healthy = base["diverged_at"] is None and run["final_loss"] <= HEALTHY * base["final_loss"]
    return "healthy" if healthy else "harmed"


def table(runs: list[dict[str, Any]]) -> str:
    """Count warned runs over all runs, by problem, K and state."""
    bases = {identity(run): run for run in runs if run["stages"] == 1}
    counts: dict[tuple[str, str], dict[str, list[int]]] = {}
    for run in runs:
        base = bases.get((run["problem"], 1, run["lr"], run["seed"]))
        if run["stages"] == 1 or base is None:
            continue
        for row in ((run["problem"], str(run["stages"])), ("all", "")):
            cells = counts.setdefault(row, {state: [0, 0] for state in STATES})
            cell = cells[state_of(run, base)]
            until = math.inf if run["diverged_at"] is None else run["diverged_at"]
            cell[0] += any(warning["iteration"] < until for warning in run["warnings"])
            cell[1] += 1
    lines = [
        f"| network | K | {' | '.join(STATES)} |",
        f"|---|---{'|---' * len(STATES)}|",
    ]
    rows = sorted(counts.items(), key=lambda item: (item[0][0] == "all", item[0][0], item[0][1:]))
    for (name, stages), cells in rows:
        texts = [f"{warned} of {number}" for warned, number in cells.values()]
        lines.append(f"| {' | '.join([name, stages, *texts])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the runs that are missing, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--text", type=Path, help="a text file, or a folder with input.txt")
    parser.add_argument("--only", help="a problem")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = {identity(run) for run in read()}
    for problem in problems(arguments.text):
        if arguments.only not in (None, problem.name):
            continue
        for seed in problem.seeds:
            for lr in LRS[problem.name]:
                for stages in (1, *problem.stages):
                    if (problem.name, stages, lr, seed) in done:
                        continue
                    run = train(problem, stages, lr, seed)
                    with RECORDS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(run) + "\n")
                    print(
                        *identity(run), run["diverged_at"], run["final_loss"], run["warnings"][:1]
                    )
    TABLE.write_text(table(read()), encoding="utf-8")


if __name__ == "__main__":
    main()
