"""Draw the test accuracy of the four runs from their records.

Run: python experiments/resnet8-cifar10/figure.py
"""

from pathlib import Path

from matplotlib.figure import Figure

from delaygrad.records import read_events

RUNS = Path(__file__).parents[2] / "results" / "resnet8-cifar10"


def main() -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle("ResNet-8 on CIFAR-10, seed 0: DDG with two stages and backpropagation")
    for axes, optimizer in zip(figure.subplots(1, 2), ("sgd", "adam"), strict=True):
        for method in ("bp", "ddg"):
            events = read_events(RUNS / f"{optimizer}-{method}" / "records.jsonl")
            points = [event for event in events if event["event"] == "evaluation"]
            axes.plot(
                [event["epoch"] for event in points],
                [100 * event["accuracy"] for event in points],
                marker=".",
                label=method,
            )
        axes.set(title=optimizer, xlabel="epoch", ylabel="test accuracy (%)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(RUNS / "accuracy.png", dpi=120)


if __name__ == "__main__":
    main()
