"""Decoupled neural interfaces (DNI): synthetic error gradients.

Jaderberg et al., "Decoupled Neural Interfaces using Synthetic Gradients", ICML 2017,
arXiv:1608.05343; the rival that Huo et al. (ICML 2018, arXiv:1804.10574) compare DDG with.

    paper              here
    module i = 1..N    stage k = 0..K-1
    h_i                the output of stage k
    M_i                the synthesizer of stage k, for k < K-1; phi[k] its parameters
    delta_i            the gradient of batch t's loss with respect to that output
    delta-hat_i        what the synthesizer predicts from the output, and the label if conditioned

    iteration t, stage k < K-1:
      forward   batch t with w[k]@t, output h
      backward  batch t at once, with the synthetic gradient S[k](h; phi[k]@t) in place of the true
                one; the error gradient that comes out at the input is kept
      update    w[k]@(t+1) = optimizer(w[k]@t, that gradient)
      learn     batch s = t - lag(k): the target for S[k](h of batch s) is the error gradient that
                stage k+1 found for the same output with its own synthetic gradient (the true one
                if k+1 = K-1); phi[k] takes one step on the squared error; the kept error
                gradient of batch s goes down as the target of stage k-1
    the last stage trains by backpropagation with the true loss

The gradient of a stage has no delay but is wrong; the target has the lag of the locked schedule,
lag(k) = K-1-k iterations, so that no stage waits for the ones above.

Choices that the paper leaves open or makes otherwise:

    network      two hidden layers with BatchNorm and ReLU and a linear layer that begins at zero,
                 as in the paper's experiments: 5x5 convolutions of 128 channels that keep the
                 resolution for (B, C, H, W), 1024 units for (B, C), and the same for each position
                 of (B, T, C). Width, depth and kernel can be chosen (recalled from the paper's
                 supplement, not checked against it).
    label        a one-hot vector beside the output; for images, constant planes
    scale        a synthesizer predicts each sample's own gradient, B times its part in the gradient
                 of a mean loss, so that its size does not depend on B
    loss         squared error, the sum over a sample, the mean over the batch
    optimizer    Adam with a constant learning rate
    schedule     a target goes down one stage per iteration, with the backward pass, so that the
                 synthesizer of stage k learns from a batch K-1-k iterations after its forward. The
                 paper's could learn one iteration after it: for K > 2 ours is behind it in that
"""

from __future__ import annotations

from delaygrad.methods.axes import Synthetic
from delaygrad.methods.method import Method, published
from delaygrad.schedule import locked


@published("decoupled neural interfaces, with synthetic gradients")
def DNI(
    num_classes: int | None = None,
    synthesizer_width: int | None = None,
    synthesizer_layers: int = 2,
    synthesizer_kernel: int = 5,
    synthesizer_lr: float = 1e-4,
) -> Method:
    """Synthetic gradients: every stage updates at once, with a predicted error gradient.

    Args:
        num_classes: condition the synthesizers on class labels (cDNI); then every stage needs
            targets. In Python this is the number of classes; None is no labels.
        synthesizer_width: hidden channels or units; by default 128 for images, 1024 otherwise.
        synthesizer_layers: hidden layers of a synthesizer, at least 0.
        synthesizer_kernel: side of a synthesizer's convolutions, odd.
        synthesizer_lr: learning rate of the synthesizers' Adam.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> DNI(num_classes=10)
        DNI(num_classes=10)

    References:
        Jaderberg et al., ICML 2017, arXiv:1608.05343, Section 2.
        Differs: see ``delaygrad.methods.dni``.
    """
    synthetic = Synthetic(
        num_classes, synthesizer_width, synthesizer_layers, synthesizer_kernel, synthesizer_lr
    )
    return Method(name="dni", schedule=locked(), error_gradient=synthetic)
