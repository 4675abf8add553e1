"""Learning curves of one run."""

from __future__ import annotations

from pathlib import Path

from delaygrad.records import read_sound_events

_COLOURS = {"test": "C1", "validation": "C2"}


def draw_curves(run_dir: Path, title: str) -> Path:
    """Draw loss and accuracy against epochs, from ``records.jsonl``, into ``curves.png``.

    Args:
        run_dir: the run's folder.
        title: above the figure.

    Returns:
        The figure's path.
    """
    # Imported here: worker processes import this module and draw nothing.
    from matplotlib.figure import Figure

    events, _ = read_sound_events(run_dir / "records.jsonl")
    training = [event for event in events if event["event"] == "training"]
    evaluations = [event for event in events if event["event"] == "evaluation"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    loss, accuracy = figure.subplots(1, 2, sharex=True)
    loss.plot(
        [event["epoch"] for event in training],
        [event["loss"] for event in training],
        color="C0",
        linewidth=1,
        label="train",
    )
    for split in sorted({event["split"] for event in evaluations}):
        points = [event for event in evaluations if event["split"] == split]
        epochs = [event["epoch"] for event in points]
        losses = [event["loss"] for event in points]
        percent = [100 * event["accuracy"] for event in points]
        for axes, values in ((loss, losses), (accuracy, percent)):
            axes.plot(epochs, values, marker=".", color=_COLOURS[split], label=split)
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    for axes in (loss, accuracy):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    path = run_dir / "curves.png"
    figure.savefig(path, dpi=150)
    return path
