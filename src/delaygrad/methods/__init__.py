"""The published methods, one per file: immutable values beside their papers."""

from delaygrad.methods.bp import BP
from delaygrad.methods.ddg import DDG
from delaygrad.methods.dni import DNI
from delaygrad.methods.method import Method

METHODS: dict[str, type[Method]] = {"bp": BP, "ddg": DDG, "dni": DNI}
"""Methods by the name that the command line takes."""

__all__ = ["BP", "DDG", "DNI", "METHODS", "Method"]
