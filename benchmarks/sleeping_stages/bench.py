"""Stages that sleep: the schedule and the transport alone, with more stages than cores.

A stage sleeps 30 ms forward and 60 ms backward, so f + b = 90 ms, and the best that K stages can
do is one iteration in 90 ms. One contest for each K = 2, 4, 8, 16; the figure shows
iteration / (f + b).

Run: python benchmarks/sleeping_stages/bench.py --output benchmarks/sleeping_stages/results.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from delaygrad.bench import ContestConfig, run_contest
from delaygrad.training.run_folder import environment

FORWARD_S, BACKWARD_S = 0.03, 0.06
CONTESTANTS = (
    "bp", "gpipe-m16", "1f1b-m4", "1f1b-m8", "1f1b-m16", "1f1b-m32", "interleaved-m16",
    "ddg", "ddg-slack1",
)  # fmt: skip
DRAWN = {
    "1f1b-m4": "C1",
    "1f1b-m8": "C6",
    "1f1b-m16": "C3",
    "1f1b-m32": "C5",
    "interleaved-m16": "C4",
    "ddg": "C2",
    "ddg-slack1": "C0",
}


def contest(
    num_stages: int, contestants: tuple[str, ...], rounds: int, turn_s: float
) -> dict[str, Any]:
    print(f"K = {num_stages}", flush=True)
    results = run_contest(
        ContestConfig(
            workload="sleep",
            stages=num_stages,
            contestants=contestants,
            rounds=rounds,
            turn_s=turn_s,
            forward_s=FORWARD_S,
            backward_s=BACKWARD_S,
        )
    )
    assert results is not None
    for contestant in results["contestants"]:
        if (iteration := contestant.get("iteration")) is not None:
            work_s = FORWARD_S + BACKWARD_S
            contestant["iteration_over_work"] = {
                "median": round(iteration["median"] / work_s, 4),
                "quartiles": [round(seconds / work_s, 4) for seconds in iteration["quartiles"]],
            }
            print(f"  {contestant['title']}: {contestant['iteration_over_work']}", flush=True)
        else:
            print(f"  {contestant['title']}: {contestant['does_not_run']}", flush=True)
    return results


def draw(contests: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, colour in DRAWN.items():
        points = [
            (results["num_stages"], contestant["title"], contestant["iteration_over_work"])
            for results in contests
            for contestant in results["contestants"]
            if contestant["name"] == name and "iteration_over_work" in contestant
        ]
        if points:
            stages = [stages for stages, _, _ in points]
            middles = [spread["median"] for _, _, spread in points]
            errors = [
                [spread["median"] - spread["quartiles"][0] for _, _, spread in points],
                [spread["quartiles"][1] - spread["median"] for _, _, spread in points],
            ]
            axes.errorbar(
                stages, middles, errors, label=points[0][1], color=colour, marker="o", capsize=2
            )
    axes.axhline(1.05, color="black", linewidth=0.8, linestyle=":", label="goal: 1.05")
    axes.set_xscale("log", base=2)
    stage_counts = [results["num_stages"] for results in contests]
    axes.set_xticks(stage_counts, [str(count) for count in stage_counts])
    axes.set(xlabel="stages", ylabel="iteration / (f + b)", ylim=(0.9, None))
    axes.set_title("sleeping stages, f + b = 90 ms", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn-s", type=float, default=10.0)
    options = parser.parse_args()
    contests = [
        contest(stages, tuple(options.contestants), options.rounds, options.turn_s)
        for stages in options.stages
    ]
    report = {"environment": environment(), "contests": contests}
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw(contests, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
