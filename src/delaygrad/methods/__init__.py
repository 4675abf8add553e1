"""The published methods, one per file, and the axes that they choose on.

A file in this folder that uses ``published`` is found here: nothing else has to name it.
"""

import importlib
import pkgutil

from delaygrad.methods.bp import BP
from delaygrad.methods.ddg import DDG
from delaygrad.methods.dni import DNI
from delaygrad.methods.fdg import FDG
from delaygrad.methods.fr import FR
from delaygrad.methods.lookahead import Lookahead
from delaygrad.methods.method import METHODS, Method, options_of, published

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)


def foreign_options(method: str) -> set[str]:
    """Return the options that other methods have and this one has not.

    Args:
        method: by its name; one that is not known has no foreign options.

    Example:
        >>> "slack" in foreign_options("bp"), "micro_batches" in foreign_options("bp")
        (True, False)
    """
    every = {option for name in METHODS for option in options_of(name)}
    return every - set(options_of(method)) if method in METHODS else set()


__all__ = [
    "BP", "DDG", "DNI", "FDG", "FR", "METHODS", "Lookahead", "Method", "foreign_options",
    "options_of", "published",
]  # fmt: skip
