"""Decoupled greedy learning: each stage learns from a classifier of its own.

Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020, arXiv:1901.08164.

    paper        here
    module j     stage k
    a_j, gamma   the stage's classifier and its parameters
    L(y, a(h))   the cross-entropy of the classifier on the stage's detached output

Deviations: the classifier is an average over positions and a linear layer, where the paper's have
hidden layers. It learns with Adam, not with the stage's optimizer. No replay buffers. The messages
downwards are sent and not used.
"""

from __future__ import annotations

from delaygrad.methods.axes import LocalHead
from delaygrad.methods.method import Method, published
from delaygrad.schedule import locked


@published("decoupled greedy learning, with a classifier on each stage")
def DGL(classes: int, head_lr: float = 1e-3) -> Method:
    """Local losses: every stage updates at once, and no gradient crosses a boundary.

    Args:
        classes: of the targets, class indices, which every stage must be given.
        head_lr: learning rate of the classifiers' Adam.

    Raises:
        ValueError: a number is out of range.

    References:
        Belilovsky et al., ICML 2020, arXiv:1901.08164, Algorithm 1.
        Differs: see ``delaygrad.methods.dgl``.
    """
    return Method(name="dgl", schedule=locked(), error_gradient=LocalHead(classes, head_lr))
