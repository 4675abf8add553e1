"""Loss scaling: what is skipped, where, and what becomes of the scale.

Scales are powers of two, so that scaled training is unscaled training to the last bit.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from equivalence.naive_ticks import NaiveTicks
from equivalence.test_clipping import CASES, into_stages
from exact import assert_same
from networks import OPTIMIZERS, batches, parameters
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.methods.axes import LossScale

MAKE = OPTIMIZERS["nesterov"]


class NaiveSkipping(NaiveTicks):
    """The update of one batch is left out on a stage and on those below."""

    def __init__(self, *, stage_index: int, batch: int, **rules: Any) -> None:
        super().__init__(**rules, update=self._unless_skipped)
        self.stage_index, self.batch, self.current = stage_index, batch, 0

    def _backward(self, k: int, n: int, part: Any) -> None:
        self.current = k
        super()._backward(k, n, part)

    def _unless_skipped(self, parameters: Any, state: Any, delay: int, index: int) -> None:
        if self.current > self.stage_index or index != self.batch:
            self.optimizers[self.current].step()


def overflowing(stages: list[nn.Module], stage_index: int, part: int) -> None:
    """Let the gradient that one (micro-)batch gives to one parameter of a stage overflow."""
    calls = [0]

    def overflow(gradient: Tensor) -> Tensor:
        calls[0] += 1
        return gradient * math.inf if calls[0] == part + 1 else gradient

    next(stages[stage_index].parameters()).register_hook(overflow)


@pytest.mark.parametrize(
    "case", ["ddg", "slack", "parts", "backpropagation", "shrunk", "look-ahead"]
)
@pytest.mark.parametrize("stage_index", [0, 1, 2])
def test_an_overflow_skips_its_batch_on_the_stage_and_on_those_below(
    case: str, stage_index: int
) -> None:
    method, rule = CASES[case]
    parts = method.schedule.micro_batches
    stages = into_stages(3)
    naive = NaiveSkipping(
        stages=stages, make_optimizer=MAKE, stage_index=stage_index, batch=3, **rule
    )
    naive.run(list(batches(9, (6,), sizes=(6,))))
    overflowing(stages, stage_index, part=3 * parts)
    pipe = dg.LocalPipeline(stages, cross_entropy, MAKE, method=method, loss_scale=2.0**12)
    for x, y in batches(9, (6,), sizes=(6,)):
        pipe.step(x, y)
    pipe.flush()
    assert_same(parameters(stages), parameters(naive.stages))
    assert pipe.skipped == [int(k <= stage_index) for k in range(3)]
    assert pipe.loss_scale == 2.0**11


def test_a_skipped_update_of_a_stage_that_predicts_is_an_update_by_nothing() -> None:
    """So that w - w_prev is 0 after it, and the next forward meets the live parameters."""
    stages = into_stages(1)
    overflowing(stages, 0, part=3)
    method = dg.BP(lookahead=1.0)
    pipe = dg.LocalPipeline(stages, cross_entropy, MAKE, method=method, loss_scale=2.0**12)
    data = list(batches(5, (6,)))
    for x, y in data[:4]:
        pipe.step(x, y)
    outputs = pipe.predict(data[4][0])
    loss = pipe.step(*data[4])
    torch.testing.assert_close(loss, cross_entropy(outputs, data[4][1]), rtol=0, atol=0)


def test_each_batch_keeps_its_scale_and_those_that_enter_later_get_a_lower_one() -> None:
    stages = into_stages(3)
    for parameter in list(stages[2].parameters())[:1]:
        # Overflows where the scale is above 4, as float16 would.
        parameter.register_hook(lambda g: g * (math.inf if pipe_scale() > 4 else 1))

    def pipe_scale() -> float:
        signals = pipe._workers[2].stage.signals
        assert signals is not None
        return float(signals.scale)

    pipe = dg.LocalPipeline(stages, cross_entropy, MAKE, loss_scale=16.0)
    scales, skipped = [], []
    for x, y in batches(12, (6,)):
        pipe.step(x, y)
        scales.append(pipe.loss_scale)
        skipped.append(pipe.skipped)
    # A skip at the last stage is known at stage 0 two iterations later: three batches have entered
    # with 16, three with 8, and 16 is halved once.
    assert scales == [16, 16, 8, 8, 8, 4, 4, 4, 4, 4, 4, 4]
    assert skipped[-1] == [6, 6, 6]
    assert [row[2] for row in skipped] == [1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("num_stages", [1, 3])
def test_a_loss_that_is_not_finite_is_a_skipped_batch(num_stages: int, value: float) -> None:
    seen = [0]

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen[0] += 1
        loss = cross_entropy(outputs, targets)
        return loss + (value if seen[0] == 4 else 0.0)  # its gradient would be finite

    stages = into_stages(num_stages)
    naive = NaiveSkipping(
        stages=stages, make_optimizer=MAKE, stage_index=num_stages, batch=3, **CASES["ddg"][1]
    )
    naive.run(list(batches(9, (6,), sizes=(6,))))
    pipe = dg.LocalPipeline(stages, loss_fn, MAKE, loss_scale=2.0**12)
    losses = [pipe.step(x, y) for x, y in batches(9, (6,), sizes=(6,))]
    pipe.flush()
    assert_same(parameters(stages), parameters(naive.stages))
    assert [float(loss).hex() for loss in losses if loss is not None][3] == value.hex()
    assert pipe.skipped == [1] * num_stages


def test_the_scale_grows_after_batches_that_were_not_skipped() -> None:
    pipe = dg.LocalPipeline(
        into_stages(2), cross_entropy, MAKE, loss_scale=LossScale(8.0, growth_interval=3)
    )
    scales = []
    for x, y in batches(8, (6,)):
        pipe.step(x, y)
        scales.append(pipe.loss_scale)
    assert scales == [8, 8, 8, 16, 16, 16, 32, 32]  # stage 0 is one iteration late


def test_training_in_float16_needs_the_scale() -> None:
    """Gradients below the smallest float16 vanish without it."""

    def trained(loss_scale: float | None) -> bool:
        stages = into_stages(2)
        before = parameters(stages[:1])
        pipe = dg.LocalPipeline(
            stages,
            lambda outputs, targets: cross_entropy(outputs.float(), targets) * 1e-7,
            lambda params: torch.optim.SGD(params, lr=1e4),
            loss_scale=loss_scale,
        )
        with torch.autocast("cpu", dtype=torch.float16):
            for x, y in batches(3, (6,)):
                pipe.step(x, y)
        assert pipe.skipped == [0, 0]
        pairs = zip(before, parameters(stages[:1]), strict=True)
        return any(not torch.equal(a, b) for a, b in pairs)

    assert trained(2.0**16)
    assert not trained(None)


def test_a_resumed_run_ends_with_the_same_bits() -> None:
    def make(seed: int) -> tuple[list[nn.Module], dg.LocalPipeline]:
        stages = into_stages(3, seed)
        scale = LossScale(2.0**8, growth_interval=2)
        return stages, dg.LocalPipeline(
            stages, cross_entropy, MAKE, method=dg.DDG(micro_batches=2), loss_scale=scale,
            clip_norm=0.4,
        )  # fmt: skip

    stages, pipe = make(0)
    overflowing(stages, 1, part=4)
    data = list(batches(10, (6,), sizes=(6,)))
    for x, y in data[:4]:
        pipe.step(x, y)
    _, resumed = make(7)
    resumed.load_state_dict(pipe.state_dict())
    for x, y in data[4:]:
        assert_same(pipe.step(x, y), resumed.step(x, y))
    pipe.flush()
    resumed.flush()
    assert_same(resumed.state_dict(), pipe.state_dict())
    assert resumed.skipped == pipe.skipped == [1, 1, 0]


def test_on_an_accelerator_the_optimizer_itself_skips() -> None:
    """Tried on the CPU, whose fused optimizers have the same switch."""

    def trained(*, on_device: bool) -> list[Tensor]:
        stages = into_stages(2)
        overflowing(stages, 1, part=2)
        pipe = dg.LocalPipeline(
            stages,
            cross_entropy,
            lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
            loss_scale=2.0**10,
        )
        for worker in pipe._workers.values():
            assert worker.stage.signals is not None
            worker.stage.signals._reads = not on_device
        for x, y in batches(6, (6,)):
            pipe.step(x, y)
        assert pipe.skipped == [1, 1]
        return parameters(stages)

    assert_same(trained(on_device=True), trained(on_device=False))

    pipe = dg.LocalPipeline(into_stages(1), cross_entropy, MAKE, loss_scale=2.0**10)
    signals = pipe._workers[0].stage.signals
    assert signals is not None
    signals._reads = False
    with pytest.raises(dg.StageError, match="make it with fused=True"):
        pipe.step(*next(batches(1, (6,))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossScale(0.0), "must be above 0"),
        (lambda: LossScale(growth_interval=0), "growth_interval must be at least 1"),
        (lambda: dg.DNI().with_options(None, 8.0), "no loss to scale"),
        (lambda: dg.DDG().with_options(None, 8.0).with_options(None, 8.0), "loss_scale already"),
    ],
)  # fmt: skip
def test_what_cannot_be_scaled_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("scale", "loss", "first"),
    [
        (2.0**16, lambda x, y: cross_entropy(x, y) / 0, 100),  # below 1 by then
        (2.0**600, cross_entropy, 200),  # no float32; not yet a hundred in a row at 100
        (2.0**16, cross_entropy, None),
    ],
)
def test_many_skipped_batches_are_a_warning(scale: float, loss: Any, first: int | None) -> None:
    pipe = dg.LocalPipeline(into_stages(2), loss, MAKE, loss_scale=scale)
    told = []
    for x, y in batches(301, (6,)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe.step(x, y)
        told += [(pipe.iteration, str(w.message), w.filename) for w in caught]
    assert [iteration for iteration, _, _ in told] == ([] if first is None else [first])
    for _, message, file in told:
        assert "loss scaling finds no scale" in message and file == __file__
