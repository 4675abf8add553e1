"""Measure what each layer costs, cut a network into K balanced stages, join them again.

With `forecast` and its companions also: predict how the stages will run, before they do.
"""

from delaygrad.partition.balance import balance as balance
from delaygrad.partition.costs import LayerCost as LayerCost
from delaygrad.partition.costs import Seconds as Seconds
from delaygrad.partition.cuts import cuts_of as cuts_of
from delaygrad.partition.forecast import Forecast as Forecast
from delaygrad.partition.forecast import Pipelined as Pipelined
from delaygrad.partition.forecast import forecast as forecast
from delaygrad.partition.layers import layer_names as layer_names
from delaygrad.partition.link import Link as Link
from delaygrad.partition.measure import measure as measure
from delaygrad.partition.merge import merge as merge
from delaygrad.partition.split import split as split

__all__ = [
    "Forecast",
    "LayerCost",
    "Link",
    "Pipelined",
    "Seconds",
    "balance",
    "cuts_of",
    "forecast",
    "layer_names",
    "measure",
    "merge",
    "split",
]
