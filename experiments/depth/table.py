"""Print a part's table from its run folders, by the protocol of README.md.

python experiments/depth/table.py FOLDER
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from delaygrad.records.spread import spread_of, spread_text
from delaygrad.results.group import BASELINE
from delaygrad.results.run import Run, read_run

Name = tuple[str, int]


def name_of(run: Run) -> Name:
    """Return method with its options, and K: the runs of one name differ in lr and seed."""
    ahead = ", look-ahead" if run.method == BASELINE and run.config.get("lookahead") else ""
    parts = run.config.get("micro_batches", 1)
    return run.method + ahead + (f", M = {parts}" if parts > 1 else ""), run.num_stages


def chosen(runs: list[Run]) -> dict[int, Run]:
    """Return a method's runs by seed, at the learning rate that is best on validation data."""
    first = [run for run in runs if run.seed == 0]
    best = min(first, key=lambda run: float(run.evaluations("validation")[-1]["loss"]))
    return {run.seed: run for run in runs if run.config["lr"] == best.config["lr"]}


def main() -> None:
    """Print the table."""
    by_name = defaultdict(list)
    for folder in sorted(Path(sys.argv[1]).glob("*/summary.json")):
        run = read_run(folder.parent)
        by_name[name_of(run)].append(run)
    methods = {name: chosen(runs) for name, runs in by_name.items()}
    losses = {
        name: {seed: run.train_loss or 0.0 for seed, run in runs.items()}
        for name, runs in methods.items()
    }
    base = min(
        (name for name in methods if name[0].startswith(BASELINE)),
        key=lambda name: sum(losses[name].values()) / len(losses[name]),
    )
    print(
        "| method | K | lr | seeds | training loss | against best BP, % | test accuracy, points |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, runs in sorted(methods.items(), key=lambda item: (item[0][1], item[0][0])):
        pairs = [(run, methods[base][seed]) for seed, run in runs.items() if seed in methods[base]]
        loss = spread_of(losses[name].values())
        ratio = spread_of(
            100 * (losses[name][run.seed] / losses[base][run.seed] - 1) for run, _ in pairs
        )
        points = spread_of(
            (run.final_accuracy or 0) - (other.final_accuracy or 0) for run, other in pairs
        )
        lr = next(iter(runs.values())).config["lr"]
        texts = (
            spread_text(loss, 4),
            spread_text(ratio, 2, sign=True),
            spread_text(points, 2, sign=True),
        )
        print(f"| {name[0]} | {name[1]} | {lr:g} | {len(runs)} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
