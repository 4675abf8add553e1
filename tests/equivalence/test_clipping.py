"""Clipping by the norm over all stages, against the stated rule written out.

each message carries the squared norms of its side: an activation those of the stages below, an
error gradient those of the stages above; a stage adds that of its own newest gradient
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from equivalence.naive_ticks import NaiveTicks
from exact import assert_same
from networks import OPTIMIZERS, batches, mlp, parameters
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import delaygrad as dg
from delaygrad.methods.axes import ClipNorm, ErrorFeedback
from delaygrad.schedule import locked

MAX_NORM = 0.4


def into_stages(num_stages: int, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    blocks = mlp(6)
    per_stage = len(blocks) // num_stages
    return [nn.Sequential(*blocks[k * per_stage : (k + 1) * per_stage]) for k in range(num_stages)]


class NaiveClipping(NaiveTicks):
    """The rule; ``wait``: the norm of what all stages apply in this tick."""

    def __init__(self, *, wait: bool = False, **rules: Any) -> None:
        super().__init__(**rules, update=self._clip)
        zero = torch.zeros((), dtype=torch.float64)
        self.own = [zero for _ in self.stages]
        self.below, self.above = list(self.own), list(self.own)
        self.up: dict[tuple[int, int], Tensor] = {}
        self.down: dict[tuple[int, int], Tensor] = {}
        self.wait, self.updating, self.current = wait, list[int](), 0
        self.coefficients: list[float] = []

    def _tick(self, t: int, parts: Any) -> Tensor | None:
        loss = super()._tick(t, parts)
        squared = sum((self.own[k] for k in sorted(self.updating)), torch.zeros(()).double())
        for k in self.updating:
            self._apply(k, squared)
        self.updating = []
        return loss

    def _forward(self, k: int, n: int, part: Any) -> Tensor | None:
        self.below[k] = self.up.pop((k - 1, n), self.below[k])
        loss = super()._forward(k, n, part)
        self.up[k, n] = self.below[k] + self.own[k]
        return loss

    def _backward(self, k: int, n: int, part: Any) -> None:
        self.current = k
        self.above[k] = self.down.pop((k + 1, n), self.above[k])
        super()._backward(k, n, part)
        self.down[k, n] = self.above[k] + self.own[k]

    def _clip(self, parameters: list[nn.Parameter], *_: Any) -> None:
        k = self.current
        norms = [torch.linalg.vector_norm(p.grad) for p in parameters]
        self.own[k] = torch.linalg.vector_norm(torch.stack(norms)).double() ** 2
        if self.wait:
            self.updating.append(k)
        else:
            self._apply(k, self.below[k] + self.own[k] + self.above[k])

    def _apply(self, k: int, squared: Tensor) -> None:
        factor = (MAX_NORM / (squared.sqrt().float() + 1e-6)).clamp(max=1)
        self.coefficients.append(float(factor))
        for parameter in self.stages[k].parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(factor)
        self.optimizers[k].step()


def nothing(k: int, num_stages: int) -> int:
    return 0


def above(k: int, num_stages: int) -> int:
    return num_stages - 1 - k


LOCKED: dict[str, Any] = {"offset": nothing, "lag": above}
UNLOCKED: dict[str, Any] = {"offset": lambda k, _: k, "lag": lambda k, n: 2 * above(k, n)}
CASES: dict[str, tuple[dg.Method, dict[str, Any]]] = {
    "ddg": (dg.DDG(), LOCKED),
    "slack": (dg.DDG(slack=1), {"offset": nothing, "lag": lambda k, n: 2 * above(k, n)}),
    "parts": (dg.DDG(micro_batches=2, recompute=True), {**LOCKED, "micro_batches": 2}),
    "backpropagation": (
        dg.BP(micro_batches=2),
        {"offset": nothing, "lag": nothing, "micro_batches": 2},
    ),
    "replay": (dg.FR(), {**LOCKED, "replays": True}),
    "shrunk": (dg.FDG(beta=0.5), {**UNLOCKED, "beta": 0.5}),
    "look-ahead": (
        dg.Lookahead(micro_batches=3),
        {**LOCKED, "micro_batches": 3, "horizon": lambda k, n: above(k, n) / 3 + 1},
    ),
}
WAITING = ("ddg", "slack", "backpropagation", "replay", "shrunk")


def train(pipe: Any, num_batches: int = 9) -> list[Any]:
    losses = [pipe.step(x, y) for x, y in batches(num_batches, (6,), sizes=(6,))]
    pipe.flush()
    return losses


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize(
    ("case", "wait"), [*((case, False) for case in CASES), *((case, True) for case in WAITING)]
)
def test_it_is_the_stated_rule(case: str, wait: bool, num_stages: int) -> None:
    method, rule = CASES[case]
    stages = into_stages(num_stages)
    make = OPTIMIZERS["nesterov"]
    naive = NaiveClipping(stages=stages, make_optimizer=make, wait=wait, **rule)
    naive.run(list(batches(9, (6,), sizes=(6,))))
    clip = ClipNorm(MAX_NORM, wait=True) if wait else MAX_NORM
    train(dg.LocalPipeline(stages, cross_entropy, make, method=method, clip_norm=clip))
    assert_same(parameters(stages), parameters(naive.stages))
    assert min(naive.coefficients) < 0.95, "nothing was clipped"


def test_one_stage_is_clipped_as_pytorch_clips() -> None:
    for dtype in (torch.float32, torch.float64):
        stages = [into_stages(1)[0].to(dtype)]
        (plain,) = into_stages(1)
        plain.to(dtype)
        optimizer = OPTIMIZERS["adam"](list(plain.parameters()))
        pipe = dg.LocalPipeline(stages, cross_entropy, OPTIMIZERS["adam"], clip_norm=MAX_NORM)
        for x, y in batches(6, (6,)):
            optimizer.zero_grad()
            cross_entropy(plain(x.to(dtype)), y).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), MAX_NORM)
            optimizer.step()
            pipe.step(x.to(dtype), y)
        assert_same(parameters(stages), parameters([plain]))


def test_waiting_without_delay_is_clipping_the_whole_network() -> None:
    stages = into_stages(3)
    plain = nn.Sequential(*into_stages(3))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    pipe = dg.LocalPipeline(
        stages,
        cross_entropy,
        lambda params: torch.optim.SGD(params, lr=0.1),
        method=dg.BP(),
        clip_norm=ClipNorm(MAX_NORM, wait=True),
    )
    for x, y in batches(6, (6,)):
        optimizer.zero_grad()
        cross_entropy(plain(x), y).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), MAX_NORM)
        optimizer.step()
        pipe.step(x, y)
    for ours, theirs in zip(parameters(stages), parameters([plain]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def spiked(stages: list[nn.Module], stage_index: int, batch: int, factor: float) -> None:
    """Multiply the gradients that one batch gives to a stage's parameters."""
    for parameter in stages[stage_index].parameters():
        calls = [0]

        def spike(gradient: Tensor, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return gradient * factor if calls[0] == batch + 1 else gradient

        parameter.register_hook(spike)


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("stage_index", [0, 1, 2])
def test_a_spike_does_not_pass_its_stage(stage_index: int, wait: bool) -> None:
    stages = into_stages(3)
    spiked(stages, stage_index, batch=3, factor=1e6)
    pipe = dg.LocalPipeline(
        stages,
        cross_entropy,
        lambda params: torch.optim.SGD(params, lr=1.0),
        clip_norm=ClipNorm(MAX_NORM, wait=wait),
    )
    sizes: list[list[float]] = []
    before = [parameters([stage]) for stage in stages]
    for x, y in batches(9, (6,), sizes=(6,)):
        pipe.step(x, y)
        after = [parameters([stage]) for stage in stages]
        sizes.append([float(nn.utils.get_total_norm([a - b for a, b in zip(*pair, strict=True)]))
                      for pair in zip(after, before, strict=True)])  # fmt: skip
        before = after
    assert max(max(row) for row in sizes) <= MAX_NORM * 1.001
    met = 3 + 2 - stage_index  # the iteration in which the stage applies batch 3
    assert sizes[met][stage_index] > MAX_NORM * 0.99, "the spike was there"
    for k in range(stage_index):  # below: the same batch, with the norm that came with it
        assert sizes[met if wait else 3 + 2 - k][k] < 1e-3
    for k in range(stage_index + 1, 3):  # above: from the next activation on
        assert sizes[met if wait else met + 1][k] < 1e-3


@pytest.mark.parametrize(
    "change", [{}, {"wait": True}, {"method": dg.Lookahead(micro_batches=3)},
               {"method": dg.DNI(num_classes=5, synthesizer_width=8)}], ids=str,
)  # fmt: skip
def test_a_resumed_run_ends_with_the_same_bits(change: dict[str, Any]) -> None:
    options = dict(change)
    method = options.pop("method", dg.DDG())

    def make(seed: int) -> dg.LocalPipeline:
        clip = ClipNorm(MAX_NORM, **options)
        stages = into_stages(3, seed)
        return dg.LocalPipeline(
            stages, cross_entropy, OPTIMIZERS["adam"], method=method, clip_norm=clip
        )

    torch.manual_seed(1)
    pipe = make(0)
    data = list(batches(10, (6,), sizes=(6,)))
    for x, y in data[:5]:
        pipe.step(x, y)
    state = pipe.state_dict()
    resumed = make(7)
    resumed.load_state_dict(state)
    for x, y in data[5:]:
        assert_same(pipe.step(x, y), resumed.step(x, y))
    pipe.flush()
    resumed.flush()
    assert_same(resumed.state_dict(), pipe.state_dict())


def test_clipping_comes_before_other_transformations() -> None:
    def trained(method: dg.Method, clip: float | None) -> list[Tensor]:
        stages = into_stages(3)
        make = OPTIMIZERS["nesterov"]
        train(dg.LocalPipeline(stages, cross_entropy, make, method=method, clip_norm=clip))
        return parameters(stages)

    feedback = dg.Method(name="ef", schedule=locked(), update=(ErrorFeedback(),))
    both = (ClipNorm(MAX_NORM), ErrorFeedback())
    spelt = dg.Method(name="ef", schedule=locked(), update=both)
    assert_same(trained(feedback, MAX_NORM), trained(spelt, None))


def test_a_stage_without_parameters_passes_the_norms_on() -> None:
    def trained(stages: list[nn.Module]) -> list[Tensor]:
        make, method = OPTIMIZERS["nesterov"], dg.BP()
        clip = ClipNorm(MAX_NORM, wait=True)
        train(dg.LocalPipeline(stages, cross_entropy, make, method=method, clip_norm=clip))
        return parameters(stages)

    first, last = into_stages(2)
    again = into_stages(2)
    assert_same(trained([first, nn.Identity(), last]), trained(again))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipNorm(0.0), "max_norm must be above 0"),
        (lambda: dg.DDG().with_options(ClipNorm(1.0), None).with_options(1.0, None), "clips once"),
        (
            lambda: dg.LocalPipeline(
                into_stages(3),
                cross_entropy,
                OPTIMIZERS["adam"],
                method=dg.Lookahead(micro_batches=3),
                clip_norm=ClipNorm(1.0, wait=True),
            ),
            "update at different times",
        ),
        (
            lambda: dg.LocalPipeline(
                into_stages(2),
                cross_entropy,
                OPTIMIZERS["adam"],
                method=dg.DNI(),
                clip_norm=ClipNorm(1.0, wait=True),
            ),
            "update at different times",
        ),
    ],
)
def test_what_cannot_be_clipped_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
