"""A run, from its configuration to its folder of results."""

from delaygrad.training.config import TrainConfig, load_config
from delaygrad.training.run import resume, train

__all__ = ["TrainConfig", "load_config", "resume", "train"]
