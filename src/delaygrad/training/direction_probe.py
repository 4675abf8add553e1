"""Measure, while a run goes on, how well the delayed gradients point.

In iteration t = s + delay(k) stage k applies a gradient g, of batch s. Let G be the gradient that
whole-network backpropagation of the same batch has at the parameters of iteration t:

    sufficient direction   <G, g> / |G|^2      one without delay; descent needs it above zero
    cosine                 <G, g> / (|G| |g|)
    staleness ratio        |g - G|^2 / |G|^2   below one, the two agree on a direction of descent

each over the parameters of one stage. Taking the same batch leaves out the noise of sampling; that
of dropout it would measure, so the network must have none. One measurement costs a forward and a
backward of the whole network for each different delay.

References:
    Huo, Gu, Huang, "Training Neural Networks Using Features Replay", NeurIPS 2018,
    arXiv:1807.04511: the sufficient direction constant. Differs: there it is assumed to be one
    number that serves for all stages.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from delaygrad.boundary import Tree
from delaygrad.runtime import Pipeline
from delaygrad.training.evaluation import cross_entropy


class DirectionProbe:
    """Probe a pipeline that holds all stages; one batch at a time.

    Args:
        pipeline: with all stages in this process, and no micro-batches.
        every: iterations from one probed batch to the next; 0: none.
    """

    def __init__(self, pipeline: Pipeline, every: int) -> None:
        self._pipeline, self._every = pipeline, every
        stages = range(pipeline.num_stages)
        self._delays = [pipeline.method.delay(k, pipeline.num_stages) for k in stages]
        self._batch: tuple[int, Tensor, Tensor] | None = None
        self._references: dict[int, list[Tensor | None]] = {}
        self._rows: dict[int, dict[str, Any]] = {}

    def before(self, iteration: int, inputs: Tensor, targets: Tensor) -> None:
        """Look at the parameters that this iteration's updates will be applied to."""
        if self._every and self._batch is None and iteration % self._every == 0:
            self._batch = iteration, inputs.clone(), targets.clone()
        if self._batch is None:
            return
        age = iteration - self._batch[0]
        due = [k for k, delay in enumerate(self._delays) if delay == age]
        if due:
            gradients = self._backpropagate(*self._batch[1:])
            self._references = {k: gradients[k] for k in due}

    def after(self, iteration: int) -> dict[str, Any] | None:
        """Compare what was applied; return the event once all stages have applied the batch."""
        modules = self._pipeline.modules
        for k, reference in self._references.items():
            applied = [parameter.grad for parameter in modules[k].parameters()]
            row = compare_directions(applied, reference)
            self._rows[k] = {"stage": k, "delay": self._delays[k], **row}
        self._references = {}
        if self._batch is None or len(self._rows) < len(self._delays):
            return None
        start, rows = self._batch[0], [self._rows[k] for k in sorted(self._rows)]
        self._batch, self._rows = None, {}
        return {"iteration": start, "stages": rows}

    def _backpropagate(self, inputs: Tree, targets: Tensor) -> list[list[Tensor | None]]:
        """Return each stage's gradients at the live parameters, from copies of the modules."""
        stages = copy.deepcopy(self._pipeline.modules)
        devices = [inputs.device] if inputs.device.type != "cpu" else []
        with torch.random.fork_rng(devices, device_type=inputs.device.type):
            value = inputs
            for stage in stages:
                stage.zero_grad(set_to_none=True)
                value = stage(value)
            torch.autograd.backward(cross_entropy(value, targets))
        return [[parameter.grad for parameter in stage.parameters()] for stage in stages]


def compare_directions(
    applied: list[Tensor | None], reference: list[Tensor | None]
) -> dict[str, float | None]:
    """Compare a stage's applied gradient with the one it should ideally have been.

    Args:
        applied: one tensor for each parameter; None counts as zero.
        reference: the same, of the same shapes.

    Returns:
        The three numbers above; None where a norm is zero.

    Example:
        >>> compare_directions([torch.tensor([1.0, 1.0])], [torch.tensor([2.0, 0.0])])
        {'sufficient_direction': 0.5, 'cosine': 0.7071067811865475, 'staleness_ratio': 0.5}
    """
    dot = applied_square = reference_square = difference_square = 0.0
    for mine, true in zip(applied, reference, strict=True):
        if mine is None and true is None:
            continue
        shape_of = true if mine is None else mine
        assert shape_of is not None
        g = torch.zeros_like(shape_of) if mine is None else mine
        G = torch.zeros_like(shape_of) if true is None else true
        g, G = g.double(), G.double()
        dot += float((g * G).sum())
        applied_square += float(g.square().sum())
        reference_square += float(G.square().sum())
        difference_square += float((g - G).square().sum())
    if reference_square == 0:
        return {"sufficient_direction": None, "cosine": None, "staleness_ratio": None}
    norms = (applied_square * reference_square) ** 0.5
    return {
        "sufficient_direction": dot / reference_square,
        "cosine": dot / norms if norms else None,
        "staleness_ratio": difference_square / reference_square,
    }
