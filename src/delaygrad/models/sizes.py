"""Check the numbers that describe a network."""

from __future__ import annotations


def require_positive(**sizes: int) -> None:
    """Refuse sizes below 1.

    Args:
        sizes: sizes by name.
    Raises:
        ValueError: a size is below 1.
    Example:
        >>> require_positive(width=128, depth=0)
        Traceback (most recent call last):
        ValueError: depth must be at least 1 (depth: 0); raise it
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1 ({name}: {size}); raise it")


def require_dropout(dropout: float) -> None:
    """Refuse a dropout probability outside [0, 1).

    Args:
        dropout: probability of zeroing an element.
    Raises:
        ValueError: it is out of range.
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is out of range (dropout: {dropout}); use 0 <= dropout < 1")
