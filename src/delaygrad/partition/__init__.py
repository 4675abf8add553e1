"""Measure what each layer costs, cut a network into K balanced stages, join them again."""

from delaygrad.partition.balance import balance as balance
from delaygrad.partition.cuts import cuts_of as cuts_of
from delaygrad.partition.layers import layer_names as layer_names
from delaygrad.partition.measure import LayerCost as LayerCost
from delaygrad.partition.measure import measure as measure
from delaygrad.partition.merge import merge as merge
from delaygrad.partition.split import split as split

__all__ = ["LayerCost", "balance", "cuts_of", "layer_names", "measure", "merge", "split"]
