"""A multi-layer perceptron: the smallest network worth cutting."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from delaygrad.models.sizes import require_dropout, require_positive


def mlp(
    *,
    sample_shape: tuple[int, ...],
    num_classes: int,
    width: int = 128,
    depth: int = 4,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build a perceptron of ``depth`` linear layers with ReLU between them.

    The children are ``flatten, linear1, relu1, [dropout1,] …, linear<depth>``, initialised as
    PyTorch does by default.

    Args:
        sample_shape: shape of one input, without the batch; floating numbers.
        num_classes: outputs.
        width: units of each hidden layer.
        depth: linear layers, the last one included; 1 is a linear classifier.
        dropout: probability after each ReLU; 0 leaves the dropout layers out.
    Returns:
        (B, *sample_shape) float32 -> (B, num_classes) logits.
    Raises:
        ValueError: a number is out of range.
    Example:
        >>> list(dict(mlp(sample_shape=(1, 8, 8), num_classes=10, depth=2).named_children()))
        ['flatten', 'linear1', 'relu1', 'linear2']
    """
    in_features = math.prod(sample_shape)
    require_positive(num_classes=num_classes, width=width, depth=depth, sample_elements=in_features)
    require_dropout(dropout)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for layer in range(1, depth):
        layers[f"linear{layer}"] = nn.Linear(in_features, width)
        layers[f"relu{layer}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{layer}"] = nn.Dropout(dropout)
        in_features = width
    layers[f"linear{depth}"] = nn.Linear(in_features, num_classes)
    return nn.Sequential(layers)
