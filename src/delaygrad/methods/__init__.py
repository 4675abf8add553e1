"""The published methods, one per file: immutable values beside their papers."""

from delaygrad.methods.bp import BP
from delaygrad.methods.ddg import DDG
from delaygrad.methods.method import Method

METHODS: dict[str, type[Method]] = {"bp": BP, "ddg": DDG}
"""Methods by the name that the command line takes."""

__all__ = ["BP", "DDG", "METHODS", "Method"]
