"""The published methods, one per file: immutable values beside their papers."""

import dataclasses

from delaygrad.methods.bp import BP
from delaygrad.methods.ddg import DDG
from delaygrad.methods.dni import DNI
from delaygrad.methods.method import Method

METHODS: dict[str, type[Method]] = {"bp": BP, "ddg": DDG, "dni": DNI}
"""Methods by the name that the command line takes."""


def foreign_options(method: str) -> set[str]:
    """Return the options that other methods have and this one has not.

    Args:
        method: by its name; one that is not known has no foreign options.

    Example:
        >>> "slack" in foreign_options("bp"), "micro_batches" in foreign_options("bp")
        (True, False)
    """
    options = {
        name: {field.name for field in dataclasses.fields(kind)} for name, kind in METHODS.items()
    }
    return set().union(*options.values()) - options[method] if method in options else set()


__all__ = ["BP", "DDG", "DNI", "METHODS", "Method", "foreign_options"]
