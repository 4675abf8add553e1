"""Data: four sources behind one small interface, and the order in which they are read.

Nothing here knows of stages or processes. In a pipeline the first rank calls ``inputs`` and the
last one ``targets``, each with the indices that ``batch_indices`` gives to both of them alike.
"""

from __future__ import annotations

from delaygrad.data.dataset import Dataset, DataSource
from delaygrad.data.fetch import download
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
