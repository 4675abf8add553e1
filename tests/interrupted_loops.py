"""KeyboardInterrupt in a training loop of one's own.

CPython delivers a signal where a function is entered or a call returns. An attempt raises
KeyboardInterrupt at one of these places in delaygrad: in step, save, load_newest, predict or flush.
The loop then does what a user does: it goes on with the same pipeline if that is possible, and
otherwise makes a new one and loads the newest checkpoint.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import delaygrad as dg

SOURCE = str(Path(dg.__file__).parent)
ITERATIONS = 12
METHODS = {
    "ddg": dg.DDG(),
    "ddg, slack 1": dg.DDG(slack=1),
    "ddg, 2 micro-batches": dg.DDG(micro_batches=2),
    "lookahead, 2 micro-batches": dg.Lookahead(micro_batches=2),
}


class Loop:
    """Train on 12 batches; save every third, predict in between, flush at the end."""

    def __init__(self, stages: int, method: str, folder: Path) -> None:
        self._stages, self._method, self._folder = stages, METHODS[method], folder
        self.pipe = self._new()

    def _new(self) -> dg.LocalPipeline:
        torch.manual_seed(0)
        layers = [nn.Linear(6, 6), nn.Dropout(0.2), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Tanh()]
        model = nn.Sequential(*layers, nn.Linear(6, 3))
        return dg.LocalPipeline(
            dg.split(model, self._stages, cuts=["2", "3"][: self._stages - 1]),
            nn.functional.cross_entropy,
            lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
            method=self._method,
        )

    def run(self) -> dict[str, Tensor]:
        """Train from where the loop stands to its end; return parameters and statistics."""
        pipe = self.pipe
        while pipe.iteration < ITERATIONS:
            generator = torch.Generator().manual_seed(pipe.iteration)
            inputs = torch.randn(8, 6, generator=generator)
            pipe.step(inputs, torch.arange(8) % 3)
            if pipe.iteration % 5 == 0:
                pipe.predict(inputs)
            if pipe.iteration % 3 == 0:
                pipe.save(self._folder)
        pipe.flush()
        return dg.gather(pipe)

    def go_on(self) -> dict[str, Tensor]:
        """Train to the end in a new pipeline, from the newest checkpoint."""
        self.pipe.close()
        self.pipe = self._new()
        self.pipe.load_newest(self._folder)
        return self.run()


@contextmanager
def interrupted_at(number: int) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt at the place of this number; name every place that is passed."""
    passed: list[str] = []

    def on_event(frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(SOURCE):
            passed.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            if len(passed) == number:
                raise KeyboardInterrupt

    sys.setprofile(on_event)
    try:
        yield passed
    finally:
        sys.setprofile(None)


@functools.cache
def undisturbed(stages: int, method: str) -> tuple[int, dict[str, Tensor]]:
    """How many places a loop passes, and its end."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        loop = Loop(stages, method, Path(folder))
        with interrupted_at(0) as passed:
            end = loop.run()
    return len(passed), end


def interrupt_loop(rng: random.Random, folder: Path, _: object = None) -> dict[str, Any]:
    """Interrupt a loop at a random place, go on, and say what became of it."""
    stages, method = rng.choice((1, 2, 3)), rng.choice(list(METHODS))
    places, expected = undisturbed(stages, method)
    loop = Loop(stages, method, folder)
    try:
        with interrupted_at(rng.randint(1, places)) as passed:
            loop.run()
        return {"outcome": "missed"}
    except KeyboardInterrupt:
        record = {"stages": stages, "method": method, "at": passed[-1]}
    try:
        try:
            end, then = loop.run(), "went on"
        except dg.WorkerError as error:
            if "stopped in the middle of its work" not in str(error):
                return {**record, "outcome": "unclear", "error": str(error)}
            end, then = loop.go_on(), "resumed"
    except Exception as error:
        return {**record, "outcome": "lost", "error": f"{type(error).__name__}: {error}"}
    same = all(torch.equal(end[name], expected[name]) for name in expected)
    return {**record, "outcome": "survived" if same else "silent", "then": then}
