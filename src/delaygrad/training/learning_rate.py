"""The learning rate as a function of the iteration, the same for all stages."""

from __future__ import annotations

from delaygrad.training.config import TrainConfig


def learning_rate(config: TrainConfig, iteration: int, num_iterations: int) -> float:
    """Return the learning rate of one iteration.

    Args:
        config: its optimizer and learning-rate schedule.
        iteration: t, from 0.
        num_iterations: of the whole run.

    Example:
        >>> config = TrainConfig.of(lr=1.0, lr_schedule="step", lr_milestones=[0.5], warmup=2)
        >>> [learning_rate(config, t, 6) for t in range(6)]
        [0.5, 1.0, 1.0, 0.1, 0.1, 0.1]
    """
    schedule = config.lr_schedule
    factor = schedule.factor(iteration, num_iterations)
    if iteration < schedule.warmup:
        factor *= (iteration + 1) / schedule.warmup
    return config.optimizer.lr * factor
