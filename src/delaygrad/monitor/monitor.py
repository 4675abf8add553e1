"""Compare the gradients that stages apply with those that they should ideally have been."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from delaygrad.errors import DelaygradWarning
from delaygrad.methods.axes import Received
from delaygrad.monitor.advice import Advice
from delaygrad.monitor.measures import (
    compare_directions,
    distance_ratio,
    stability,
    step_times_curvature,
)
from delaygrad.runtime import Pipeline
from delaygrad.stage import Stage

_LOOKS = 10
"""Norms of gradients that are taken for one measurement."""
_FIRST = 3
"""Gradients that the growth of their norm is counted from."""
_LIMIT = 1e9
"""A larger growth, and one that is not finite, counts as this."""

Row = dict[str, Any]
"""What was measured of one stage; see ``Monitor``."""


class Monitor:
    """Measure one stage every ``every`` iterations, in turn, and warn before a run diverges.

    Stage k applies the gradient g of batch s in iteration t. Just before, the monitor computes G,
    the gradient of the same batch by plain backpropagation at the live parameters: those that all
    stages have at the start of iteration t, each after its own updates. Dropout is repeated.
    Training stays the same to the last bit. Each measurement costs one forward and backward of the
    network. In ``DistributedPipeline`` every rank makes a monitor; measurements synchronise the
    ranks.

    Each measurement is a row: ``iteration`` (s), ``stage``, ``delay`` (in updates), ``cosine``,
    ``sufficient_direction``, ``staleness_ratio``, ``prediction_error`` (methods that predict),
    ``drift`` and ``stability``. ``delaygrad.monitor.measures`` defines them; None is what cannot be
    measured. ``growth`` is the largest norm of a stage's gradient since the row before, over the
    largest of its first three. It is the largest of all stages, from about ten iterations per
    measurement. All ranks have all rows.

    Args:
        pipe: watched from its next iteration on, as long as it trains.
        every: iterations from one measured batch to the next. A measurement ends before the next
            begins.
        report: called on every rank with each row, and a warning in words or None. By default the
            process that holds stage 0 issues a ``DelaygradWarning``.

    Raises:
        TypeError: ``pipe`` is no pipeline.
        ValueError: ``every`` is below 1, or the pipeline has a monitor, or replicas (``mesh``).

    Example:
        >>> import torch, delaygrad as dg
        >>> from torch import nn
        >>> stages = [nn.Linear(4, 4), nn.Linear(4, 1)]
        >>> pipe = dg.LocalPipeline(stages, nn.functional.mse_loss, torch.optim.SGD)
        >>> monitor = dg.Monitor(pipe, every=2)
        >>> for _ in range(6):
        ...     loss = pipe.step(torch.ones(3, 4), torch.zeros(3, 1))
        >>> [(row["iteration"], row["stage"]) for row in monitor.rows]
        [(0, 0), (2, 1), (4, 0)]

    References:
        Huo, Gu, Huang, NeurIPS 2018, arXiv:1807.04511: the sufficient direction constant.
        Differs: of each stage by itself.
    """

    def __init__(
        self,
        pipe: Pipeline,
        every: int = 100,
        *,
        report: Callable[[Row, str | None], None] | None = None,
    ) -> None:
        if not isinstance(pipe, Pipeline):
            raise TypeError(
                f"a monitor watches a LocalPipeline or a DistributedPipeline (given: "
                f"{type(pipe).__name__}); train with one of them"
            )
        if every < 1:
            raise ValueError(f"every must be at least 1 (every: {every})")
        if pipe.monitor is not None:
            raise ValueError("the pipeline has a monitor already; use that one")
        if pipe.num_replicas > 1:
            raise ValueError(
                f"a monitor compares gradients of one replica (replicas: {pipe.num_replicas}); "
                "leave it out, or train without a mesh"
            )
        self._pipe, self._every = pipe, every
        self._report = self._warn if report is None else report
        self._advice = Advice()
        self.rows: list[Row] = []
        """All measurements so far."""
        self._batch: int | None = None  # the iteration of the watched batch
        self._stage: int | None = None  # the next to be measured, or being measured
        self._due = False
        self._measured: Stage | None = None
        # Of each own stage: the first three norms, and the largest since the last row.
        self._norms: list[list[Tensor]] = [[] for _ in pipe.stages]
        pipe.monitor = self

    def before(self) -> None:
        """See ``Pipeline.step``, which calls it."""
        iteration = self._pipe.iteration
        if self._batch is None and iteration % self._every == 0:
            if self._stage is None:
                self._stage = iteration // self._every % self._pipe.num_stages
            self._batch = iteration
            self._pipe.watch(iteration, self._stage)
        if self._batch is None or self._stage is None:
            return
        self._due = iteration == self._batch + self._age(self._stage)
        if self._due:
            self._measured = self._pipe.live_gradient(self._batch, self._stage)

    def after(self, share: Callable[[Any], list[Any]]) -> None:
        """See ``Pipeline.step``, which calls it."""
        if self._pipe.iteration % max(self._every // _LOOKS, 1) == 0:
            self._follow()
        if not self._due or self._stage is None:
            return
        own = None if self._measured is None else self._row(self._measured)
        shared = share((own, self._growth()))
        (row,) = (each for each, _ in shared if each is not None)
        row["growth"] = max((growth for _, growth in shared if growth is not None), default=None)
        self._stage = (self._stage + 1) % self._pipe.num_stages
        self.forget()
        self.rows.append(row)
        self._report(row, self._advice.look(row))

    def forget(self) -> None:
        """Give up the measurement that is going on: its batch is not in flight any more."""
        self._batch, self._measured, self._due = None, None, False

    @torch.no_grad()
    def _follow(self) -> None:
        """Note the norm of each own stage's gradient; no device is waited for."""
        for module, norms in zip(self._pipe.stages, self._norms, strict=True):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            if gradients := [grad for grad in gradients if not grad.is_sparse]:
                norms.append(get_total_norm(gradients))
                norms[_FIRST:] = [torch.stack(norms[_FIRST:]).max()] if norms[_FIRST:] else []

    def _growth(self) -> float | None:
        """Return how far the norms have grown since the last call, at most; of own stages."""
        found = list[float]()
        for norms in self._norms:
            if len(norms) > _FIRST:
                largest, first = float(norms.pop()), float(torch.stack(norms).max())
                if first > 0:
                    found.append(largest / first if largest < _LIMIT * first else _LIMIT)
        return max(found, default=None)

    def _age(self, stage: int) -> int:
        """Iterations from a batch's entry into the network to its update of a stage."""
        method, num_stages = self._pipe.method, self._pipe.num_stages
        schedule = method.schedule
        at_once = method.error_gradient.is_local and stage < num_stages - 1
        lag = 0 if at_once else schedule.lag(stage, num_stages)
        ticks = schedule.offset(stage, num_stages) + lag
        return -(-ticks // schedule.micro_batches)

    @torch.no_grad()
    def _row(self, stage: Stage) -> Row:
        method, num_stages, k = self._pipe.method, self._pipe.num_stages, stage.stage_index
        found, delay = stage.watched(), method.delay(k, num_stages)
        parameters = dict(stage.module.named_parameters())
        applied = {name: parameters[name].grad for name in found.gradients}
        horizon = method.forward_weights.horizon_in_updates(method.schedule, k, num_stages)
        row = {
            "iteration": self._batch,
            "stage": k,
            "delay": delay,
            **compare_directions([*applied.values()], [*found.gradients.values()]),
            "prediction_error": None,
            "drift": distance_ratio(found.live, found.met, None),
            "stability": None,
        }
        if horizon is not None and found.met:
            row["prediction_error"] = distance_ratio(found.live, found.met, found.start)
        plain = method.linearise.weights == "stash" and method.error_gradient == Received()
        if stage.optimizer is not None and found.met and plain and not method.update:
            moved, change = {}, {}
            for name, true in found.gradients.items():
                mine = applied[name]
                if true is not None and mine is not None:
                    moved[name] = found.live[name] - found.met[name]
                    change[name] = true - mine
            value = step_times_curvature(stage.optimizer, parameters, moved, change)
            mean_delay = method.schedule.lag(k, num_stages) / method.schedule.micro_batches
            row["stability"] = stability(value, stage.optimizer, mean_delay, horizon)
        return row

    def _warn(self, row: Row, warning: str | None) -> None:
        if warning is not None and self._pipe.holds_first:
            warnings.warn(warning, DelaygradWarning, stacklevel=4)
