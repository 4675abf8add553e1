"""The published methods, one per file, and the axes that they choose on.

A file in this folder that uses ``published`` is found here: nothing else has to name it.
"""

import importlib
import pkgutil

from delaygrad.methods.auto import Auto, chosen
from delaygrad.methods.bp import BP
from delaygrad.methods.ddg import DDG, method_or_ddg
from delaygrad.methods.dni import DNI
from delaygrad.methods.fdg import FDG
from delaygrad.methods.fr import FR
from delaygrad.methods.lookahead import Lookahead
from delaygrad.methods.method import METHODS, Method, published

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "BP", "DDG", "DNI", "FDG", "FR", "METHODS", "Auto", "Lookahead", "Method", "chosen",
    "method_or_ddg", "published",
]  # fmt: skip
