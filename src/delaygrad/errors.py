"""The errors that delaygrad raises on purpose.

Most also are the built-in error that a user would expect, so that ``except ValueError`` around a
bad argument keeps working.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DamagedCheckpointError",
    "DataError",
    "DelaygradError",
    "DelaygradWarning",
    "NonFiniteLossError",
    "PartitionError",
    "ReproductionError",
    "ScheduleError",
    "StageError",
    "StashError",
    "TransportError",
    "WorkerError",
    "lacks",
]


class DelaygradError(Exception):
    """The root of all errors of this library."""


class DelaygradWarning(UserWarning):
    """A part of the user's program probably has no effect, or not the intended one."""


class ConfigError(DelaygradError):
    """A setting is unknown, out of range, or contradicts another one.

    Not a ``ValueError``: command-line parsers take those for failures of their own.
    """


def lacks(package: str, user: str) -> ConfigError:
    """Make the error for a package that only an extra installs.

    Example:
        >>> raise lacks("rich", "a printed plan")
        Traceback (most recent call last):
        ...
        delaygrad.errors.ConfigError: a printed plan needs rich; pip install 'delaygrad[cli]'
    """
    return ConfigError(f"{user} needs {package}; pip install 'delaygrad[cli]'")


class DataError(DelaygradError, ValueError):
    """A data file is missing, corrupt, or not what it should be."""


class PartitionError(DelaygradError, ValueError):
    """A network cannot be cut as asked."""


class ScheduleError(DelaygradError, ValueError):
    """A schedule breaks its rules."""


class StashError(DelaygradError, KeyError):
    """A batch has no stash entry, or has one already."""

    def __str__(self) -> str:
        # KeyError shows repr(args[0]); a sentence should read as one.
        return str(self.args[0]) if self.args else ""


class StageError(DelaygradError, ValueError):
    """A stage got, or produced, something that it cannot train on."""


class TransportError(DelaygradError, RuntimeError):
    """A neighbour did not send or take a message: it is late, dead, or out of step."""


class WorkerError(DelaygradError, RuntimeError):
    """An action failed; the message begins with its stage, rank, iteration and action."""


class CheckpointError(DelaygradError, ValueError):
    """A checkpoint is missing, corrupt, or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint is missing or corrupt; the checkpoint before it may be sound."""


class NonFiniteLossError(DelaygradError, ArithmeticError):
    """The loss is NaN or infinite."""


class ReproductionError(DelaygradError, RuntimeError):
    """Runs of a reproduction have failed; says which, and why."""
