"""Data: four sources behind one small interface, and the order in which they are read.

Nothing here depends on stages or processes. In a pipeline the first rank calls ``inputs`` and the
last rank calls ``targets``. ``batch_indices`` gives both ranks the same indices.
"""

from __future__ import annotations

from delaygrad.data.cifar_official import download
from delaygrad.data.dataset import Dataset, DataSource
from delaygrad.data.order import augmentation_rng, batch_indices, iterations_per_epoch
from delaygrad.data.sources import SOURCE_NAMES, load

__all__ = [
    "SOURCE_NAMES",
    "DataSource",
    "Dataset",
    "augmentation_rng",
    "batch_indices",
    "download",
    "iterations_per_epoch",
    "load",
]
