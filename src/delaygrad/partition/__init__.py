"""Measure what each layer costs, cut a network into K balanced stages, join them again."""

from delaygrad.partition.check import check as check
from delaygrad.partition.costs import LayerCost as LayerCost
from delaygrad.partition.costs import Seconds as Seconds
from delaygrad.partition.cuts import cuts_of as cuts_of
from delaygrad.partition.layers import layer_names as layer_names
from delaygrad.partition.measurement import measure as measure
from delaygrad.partition.merge import merge as merge
from delaygrad.partition.split import split as split

__all__ = [
    "LayerCost",
    "Seconds",
    "check",
    "cuts_of",
    "layer_names",
    "measure",
    "merge",
    "split",
]
