"""The learning rate as a function of the iteration, the same for all stages."""

from __future__ import annotations

import math

from delaygrad.theory import PolynomialDecay
from delaygrad.training.config import TrainConfig


def learning_rate(config: TrainConfig, iteration: int, num_iterations: int) -> float:
    """Return the learning rate of one iteration.

    Args:
        config: its ``base_lr``, ``warmup`` and the settings whose names begin with ``lr``.
        iteration: t, from 0.
        num_iterations: of the whole run.

    Example:
        >>> config = TrainConfig(lr=1.0, lr_schedule="step", lr_milestones=(0.5,), warmup=2)
        >>> [learning_rate(config, t, 6) for t in range(6)]
        [0.5, 1.0, 1.0, 0.1, 0.1, 0.1]
    """
    progress = iteration / num_iterations
    factor = 1.0
    if config.lr_schedule == "cosine":
        factor = (1 + math.cos(math.pi * progress)) / 2
    elif config.lr_schedule == "step":
        factor = config.lr_factor ** sum(progress >= mark for mark in config.lr_milestones)
    elif config.lr_schedule == "theorem":
        decay = PolynomialDecay(lr=1.0, time_scale=config.lr_time_scale, power=config.lr_power)
        factor = decay(iteration)
    if iteration < config.warmup:
        factor *= (iteration + 1) / config.warmup
    return config.base_lr * factor
