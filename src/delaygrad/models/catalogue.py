"""``build``: a network by its name, fitted to a data source."""

from __future__ import annotations

import difflib
import re
from typing import Any

from torch import nn

from delaygrad.models.gpt import gpt
from delaygrad.models.mlp import mlp
from delaygrad.models.resnet import resnet

# The depths of the papers; any 6n + 2 is built.
_EXAMPLES = ("resnet8", "resnet20", "resnet56", "resnet110", "mlp", "gpt")
_GPT_NAMES = {"depth": "num_layers", "heads": "num_heads", "context": "context_length"}


def build(
    name: str,
    sample_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    dropout: float = 0.0,
    context: int | None = None,
) -> nn.Sequential:
    """Build a network for samples of the given shape.

    An option that the network does not have is an error, not ignored. None takes the network's
    own default.

    Args:
        name: "resnet<depth>", "mlp" or "gpt".
        sample_shape: a source's ``sample_shape``: (C, H, W) for a ResNet, any for an MLP, (T,)
            for a GPT.
        num_classes: a source's ``num_classes``; for a GPT, its vocabulary size.
        width: hidden units (mlp), elements of an embedding (gpt).
        depth: linear layers (mlp), transformer blocks (gpt).
        heads: attention heads (gpt).
        dropout: probability (mlp, gpt).
        context: the longest sequence (gpt), ≥ T; None is T.
    Returns:
        The network, freshly initialised from torch's global random state.
    Raises:
        ValueError: an unknown name, an impossible depth, an option that the network does not have,
            or a sample shape that it cannot take.
    Example:
        >>> model = build("resnet8", (3, 32, 32), 10)
        >>> model.classifier
        Linear(in_features=64, out_features=10, bias=True)
    """
    given = {"width": width, "depth": depth, "heads": heads, "context": context}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if dropout:  # no dropout is what every network without the option has
        options["dropout"] = dropout
    if match := re.fullmatch(r"resnet(\d+)", name):
        _require_known(name, options, ())
        _require_axes(name, sample_shape, "(C, H, W)")
        return resnet(int(match[1]), num_classes=num_classes, in_channels=sample_shape[0])
    if name == "mlp":
        _require_known(name, options, ("width", "depth", "dropout"))
        return mlp(sample_shape=sample_shape, num_classes=num_classes, **options)
    if name == "gpt":
        _require_known(name, options, ("width", "depth", "heads", "dropout", "context"))
        _require_axes(name, sample_shape, "(T,)")
        renamed = {_GPT_NAMES.get(key, key): value for key, value in options.items()}
        renamed.setdefault("context_length", sample_shape[0])
        if renamed["context_length"] < sample_shape[0]:
            raise ValueError(
                f"context is shorter than the samples (context: {context}, tokens per sample: "
                f"{sample_shape[0]}); use at least {sample_shape[0]}"
            )
        return gpt(vocabulary_size=num_classes, **renamed)
    nearest = difflib.get_close_matches(name, _EXAMPLES, n=3, cutoff=0.5) or _EXAMPLES
    raise ValueError(
        f"unknown model (name: {name!r}); use {', '.join(nearest)} (resnet: any depth 6n + 2)"
    )


def _require_known(name: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    if unknown := [option for option in options if option not in known]:
        raise ValueError(
            f"option without effect ({name} has no {', '.join(unknown)}); leave it out"
            + (f", {name} has {', '.join(known)}" if known else "")
        )


def _require_axes(name: str, sample_shape: tuple[int, ...], axes: str) -> None:
    if len(sample_shape) != axes.count(",") + (not axes.endswith(",)")):
        raise ValueError(
            f"model does not fit the samples (model: {name}, samples: {sample_shape}, expected: "
            f"{axes}); choose another model or another data source"
        )
